-- How many different scores are between some scores, by buckets as durable_better.sql has them.
SELECT width_bucket({key}, %(keys)s::float8[]) AS bucket, count(*)
FROM (
    SELECT entry.score
    FROM {weights}
    WHERE {better}
    GROUP BY entry.score
    HAVING sum(entry.weight) > 0
) AS entry
GROUP BY bucket
