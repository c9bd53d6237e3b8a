-- Totals that are not what their parts add up to, of a stretch of names. In one statement, so that
-- a checkpoint is in both or in neither. `below` ends the stretch, or is true for the last one.
WITH part AS (
    SELECT
        shard.tenant,
        shard.counter,
        count(*) FILTER (WHERE NOT wide) AS shards,
        coalesce(sum(value) FILTER (WHERE NOT wide), 0) AS shards_value,
        count(*) FILTER (WHERE wide) AS wides,
        coalesce(sum(value) FILTER (WHERE wide), 0) AS wides_value,
        count(*) FILTER (WHERE wide AND frozen) AS deleted_wides
    FROM generate_series(0, %(partitions)s - 1) AS here (number)
    -- A range of the primary key in each partition.
    CROSS JOIN LATERAL (
        SELECT tenant, counter, wide, value, frozen
        FROM tallyboard.counter_shards
        WHERE partition = here.number
            AND (tenant, counter) > (%(tenant)s, %(counter)s) AND {below}
    ) AS shard
    GROUP BY shard.tenant, shard.counter
), total AS (
    SELECT tenant, counter, shards, shards_value, wides, wides_value, deleted_wides, value
    FROM tallyboard.counters
    WHERE (tenant, counter) > (%(tenant)s, %(counter)s) AND {below}
)
SELECT
    tenant,
    counter,
    CASE
        WHEN part.wides = 0 THEN part.shards_value
        WHEN part.deleted_wides = 0 THEN part.wides_value
    END,
    total.value
FROM part
FULL JOIN total USING (tenant, counter)
WHERE coalesce(part.shards, 0) <> coalesce(total.shards, 0)
    OR coalesce(part.shards_value, 0) <> coalesce(total.shards_value, 0)
    OR coalesce(part.wides, 0) <> coalesce(total.wides, 0)
    OR coalesce(part.wides_value, 0) <> coalesce(total.wides_value, 0)
    OR coalesce(part.deleted_wides, 0) <> coalesce(total.deleted_wides, 0)
ORDER BY tenant, counter
