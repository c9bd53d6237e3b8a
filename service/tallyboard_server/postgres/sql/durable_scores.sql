-- The scores at some indexes of a ranking, which count from 0 (ascending, each once), and the
-- indexes of the first entry with the score and of the one behind the last.
SELECT score, behind - entries, behind
FROM (
    SELECT
        entry.score,
        sum(entry.weight) AS entries,
        (sum(sum(entry.weight)) OVER (ORDER BY {order}))::bigint AS behind
    FROM {weights}
    GROUP BY entry.score
) AS held
WHERE width_bucket(behind - 1, %(indexes)s::bigint[])
    > width_bucket(behind - entries - 1, %(indexes)s::bigint[])
