-- What both stores have to agree on, and the state of each partition.

CREATE TABLE tallyboard.store (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    partitions integer NOT NULL CHECK (partitions > 0),
    -- How many shards a write with a token chooses from: the default of the first start, for
    -- ever, so that a repeat finds the partition that it chose before.
    token_shards integer NOT NULL CHECK (token_shards > 0)
);

-- Every rule for the number of shards that was ever in force: counts written under an old rule
-- are still where that rule put them.
CREATE TABLE tallyboard.shard_rules (
    prefix text COLLATE "C" NOT NULL,
    shards integer NOT NULL CHECK (shards > 0),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (prefix, shards)
);

CREATE TABLE tallyboard.partitions (
    partition integer PRIMARY KEY CHECK (partition >= 0),
    -- Which life of the partition's data in Redis this database follows.
    incarnation text NOT NULL,
    -- False until Redis is known to hold the incarnation: until then nothing was counted in it.
    opened boolean NOT NULL,
    -- Whatever Redis held at this moment is here too; Redis' clock.
    checkpointed_at timestamptz NOT NULL
) WITH (fillfactor = 50);
