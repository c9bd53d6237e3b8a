-- Counters as of the last checkpoints: the parts as they are in Redis, and the totals.

CREATE TABLE tallyboard.counter_shards (
    partition integer NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    counter text COLLATE "C" NOT NULL,
    -- False: the shard in this partition. True: the whole value of a wide counter.
    wide boolean NOT NULL,
    value bigint NOT NULL,
    -- Of a shard: part of a wide counter, never added to again. Of a wide value: deleted, and
    -- kept so that the frozen shards are not added up once more.
    frozen boolean NOT NULL,
    PRIMARY KEY (partition, tenant, counter, wide)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Partitions are checkpointed one by one, so each adds only what it changed. The sums of shards
-- and of wide values are kept apart: a counter that becomes wide keeps its total whichever of its
-- partitions comes first.
CREATE TABLE tallyboard.counters (
    tenant text COLLATE "C" NOT NULL,
    counter text COLLATE "C" NOT NULL,
    shards integer NOT NULL,
    shards_value numeric NOT NULL,
    wides integer NOT NULL,
    wides_value numeric NOT NULL,
    deleted_wides integer NOT NULL,
    -- Null: a wide counter that was deleted.
    value numeric GENERATED ALWAYS AS (
        CASE
            WHEN wides = 0 THEN shards_value
            WHEN deleted_wides = 0 THEN wides_value
        END
    ) STORED,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, counter)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX counters_by_value ON tallyboard.counters (tenant, value DESC, counter)
    WHERE value IS NOT NULL;
