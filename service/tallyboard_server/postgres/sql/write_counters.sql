-- Makes partitions' rows equal to what was read from Redis, and adds the differences to the
-- totals. Needs the partitions' advisory locks. A null value means that the key is gone.
WITH step AS MATERIALIZED (
    SELECT
        partition, tenant COLLATE "C" AS tenant, counter COLLATE "C" AS counter,
        wide, value, frozen
    FROM unnest(
        %(partitions)s::integer[], %(tenants)s::text[], %(counters)s::text[],
        %(wides)s::boolean[], %(values)s::bigint[], %(frozens)s::boolean[]
    ) AS given (partition, tenant, counter, wide, value, frozen)
), change AS MATERIALIZED (
    SELECT
        step.partition, step.tenant, step.counter, step.wide, step.value, step.frozen,
        (step.value IS NOT NULL)::integer - (shard.value IS NOT NULL)::integer AS parts,
        coalesce(step.value, 0)::numeric - coalesce(shard.value, 0) AS added,
        (step.wide AND step.frozen)::integer
            - coalesce(shard.wide AND shard.frozen, false)::integer AS deleted
    FROM step
    LEFT JOIN tallyboard.counter_shards AS shard
        ON shard.partition = step.partition
        AND shard.tenant = step.tenant
        AND shard.counter = step.counter
        AND shard.wide = step.wide
), dropped AS (
    DELETE FROM tallyboard.counter_shards AS shard
    USING change
    WHERE change.value IS NULL
        AND shard.partition = change.partition
        AND shard.tenant = change.tenant
        AND shard.counter = change.counter
        AND shard.wide = change.wide
), written AS (
    INSERT INTO tallyboard.counter_shards (partition, tenant, counter, wide, value, frozen)
    SELECT partition, tenant, counter, wide, value, frozen
    FROM change
    WHERE value IS NOT NULL
    ON CONFLICT (partition, tenant, counter, wide)
        DO UPDATE SET value = excluded.value, frozen = excluded.frozen
)
INSERT INTO tallyboard.counters AS total (
    tenant, counter, shards, shards_value, wides, wides_value, deleted_wides, updated_at
)
SELECT
    tenant,
    counter,
    coalesce(sum(parts) FILTER (WHERE NOT wide), 0),
    coalesce(sum(added) FILTER (WHERE NOT wide), 0),
    coalesce(sum(parts) FILTER (WHERE wide), 0),
    coalesce(sum(added) FILTER (WHERE wide), 0),
    sum(deleted),
    %(read_at)s
FROM change
GROUP BY tenant, counter
HAVING bool_or(parts <> 0 OR added <> 0 OR deleted <> 0)
-- The same order everywhere: two checkpoints that share counters wait instead of deadlocking.
ORDER BY tenant, counter
ON CONFLICT (tenant, counter) DO UPDATE SET
    shards = total.shards + excluded.shards,
    shards_value = total.shards_value + excluded.shards_value,
    wides = total.wides + excluded.wides,
    wides_value = total.wides_value + excluded.wides_value,
    deleted_wides = total.deleted_wides + excluded.deleted_wides,
    updated_at = greatest(total.updated_at, excluded.updated_at)
