-- How many different scores are between some scores, by buckets as durable_better.sql has them. A
-- score is gone if the journal has others in the place of all stored entries with it.
SELECT width_bucket({key}, %(keys)s::float8[]) AS bucket, count(*)
FROM (
    (
        SELECT entry.score
        FROM tallyboard.leaderboard_entries AS entry
        WHERE entry.window_id = %(window_id)s AND {better}
        UNION
        SELECT entry.score
        FROM tallyboard.journal_entries AS entry
        WHERE entry.window_id = %(window_id)s AND {better}
    )
    EXCEPT
    SELECT entry.score
    FROM tallyboard.journal_entries AS newer
    JOIN tallyboard.leaderboard_entries AS entry
        ON entry.window_id = newer.window_id AND entry.member = newer.member
    WHERE newer.window_id = %(window_id)s AND {better} AND NOT EXISTS (
        SELECT FROM tallyboard.journal_entries AS same
        WHERE same.window_id = %(window_id)s AND same.score = entry.score
    )
    GROUP BY entry.score
    HAVING count(*) = (
        SELECT count(*)
        FROM tallyboard.leaderboard_entries AS same
        WHERE same.window_id = %(window_id)s AND same.score = entry.score
    )
) AS entry
GROUP BY bucket
