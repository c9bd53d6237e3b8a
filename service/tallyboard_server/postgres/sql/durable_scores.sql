-- The scores at some indexes of a ranking, which count from 0 (ascending, each once), and the
-- indexes of the first entry with the score and of the one behind the last. Weighs each score as
-- durable_count.sql counts. {order} is that of scores.
SELECT score, behind - entries, behind
FROM (
    SELECT
        score,
        sum(weight)::bigint AS entries,
        (sum(sum(weight)) OVER (ORDER BY {order}))::bigint AS behind
    FROM (
        SELECT entry.score, 1 AS weight
        FROM tallyboard.leaderboard_entries AS entry
        WHERE entry.window_id = %(window_id)s
        UNION ALL
        SELECT entry.score, 1
        FROM tallyboard.journal_entries AS entry
        WHERE entry.window_id = %(window_id)s
        UNION ALL
        SELECT entry.score, -1
        FROM tallyboard.journal_entries AS newer
        JOIN tallyboard.leaderboard_entries AS entry
            ON entry.window_id = newer.window_id AND entry.member = newer.member
        WHERE newer.window_id = %(window_id)s
    ) AS part
    GROUP BY score
) AS held
WHERE width_bucket(behind - 1, %(indexes)s::bigint[])
    > width_bucket(behind - entries - 1, %(indexes)s::bigint[])
