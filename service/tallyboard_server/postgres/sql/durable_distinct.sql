-- How many different scores are between some scores, by buckets as durable_better.sql has them.
SELECT width_bucket({key}, %(keys)s::float8[]) AS bucket, count(*)
FROM (SELECT DISTINCT entry.score FROM {entries} WHERE {better}) AS entry
GROUP BY bucket
