-- The scores at some indexes (ascending, each once) among all of a window in ascending order, and
-- the indexes of the first entry with the score and of the one behind the last.
SELECT score, behind - entries, behind
FROM (
    SELECT
        entry.score,
        sum(entry.weight) AS entries,
        -- As integers, because sums of bigints are numerics, which take three times as long.
        sum(sum(entry.weight)::integer) OVER (
            ORDER BY entry.score
            ROWS UNBOUNDED PRECEDING
        ) AS behind
    FROM {weights}
    GROUP BY entry.score
) AS held
WHERE width_bucket((behind - 1)::float8, %(indexes)s::float8[])
    > width_bucket((behind - entries - 1)::float8, %(indexes)s::float8[])
