-- The scores at some indexes of a ranking, which count from 0.
SELECT index, score
FROM (
    SELECT row_number() OVER (ORDER BY {order}) - 1 AS index, entry.score
    FROM {entries}
) AS ranked
WHERE index = ANY(%(indexes)s::bigint[])
