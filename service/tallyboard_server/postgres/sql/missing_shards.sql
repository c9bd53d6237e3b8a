-- Which of the given shards have no row, by their place in the list, from 1.
SELECT given.at
FROM unnest(%s::integer[], %s::text[], %s::text[], %s::boolean[]) WITH ORDINALITY
    AS given (partition, tenant, counter, wide, at)
WHERE NOT EXISTS (
    SELECT FROM tallyboard.counter_shards AS shard
    WHERE shard.partition = given.partition
        AND shard.tenant = given.tenant
        AND shard.counter = given.counter
        AND shard.wide = given.wide
)
ORDER BY given.at
