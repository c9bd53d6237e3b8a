-- Recovery: the state of each partition, the journal, and what a rebuild needs besides values.

ALTER TABLE tallyboard.partitions
    -- OPEN: writes go to Redis. JOURNALING: they go to the journal, until the keeper has drained
    -- it. REBUILDING: the same, while the keeper makes the partition's data in Redis anew.
    ADD COLUMN state text COLLATE "C" NOT NULL DEFAULT 'OPEN'
        CHECK (state IN ('OPEN', 'JOURNALING', 'REBUILDING')),
    -- How often the state has changed, and when it did last.
    ADD COLUMN changes bigint NOT NULL DEFAULT 0,
    ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now(),
    -- The number of the last checkpoint. Redis holds the number of the last one that was taken, so
    -- a Redis with a smaller one is older than what is here.
    ADD COLUMN version bigint NOT NULL DEFAULT 0,
    -- Incarnations that it had before: data under one of these may be thrown away.
    ADD COLUMN earlier text[] COLLATE "C" NOT NULL DEFAULT '{}';

-- The life of Redis that was looked at last, by its run_id: another one may have lost something.
ALTER TABLE tallyboard.store ADD COLUMN redis_life text COLLATE "C" NOT NULL DEFAULT '';

-- Batches that are durable here, and not yet in a checkpoint. A row goes with the checkpoint that
-- has its effect, in the same transaction.
CREATE TABLE tallyboard.journal (
    journal_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partition integer NOT NULL,
    -- The token that the batch has in Redis.
    link text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    -- What it consists of, as recovery/batches.py has it.
    batch text NOT NULL,
    updates integer NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Whether its scores are in journal_entries, since the partition was journaled for last.
    shown boolean NOT NULL DEFAULT false,
    UNIQUE (partition, link, sequence)
);

CREATE INDEX journal_by_partition ON tallyboard.journal (partition, journal_id);

-- The increments of the journal, for reads while Redis is away.
CREATE TABLE tallyboard.journal_increments (
    journal_id bigint NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    counter text COLLATE "C" NOT NULL,
    delta numeric NOT NULL,
    PRIMARY KEY (tenant, counter, journal_id)
);

CREATE INDEX journal_increments_by_batch ON tallyboard.journal_increments (journal_id);

-- The callers' tokens in the journal, so that a repeat is not journaled a second time.
CREATE TABLE tallyboard.journal_tokens (
    token text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    journal_id bigint NOT NULL,
    PRIMARY KEY (token, sequence)
);

CREATE INDEX journal_tokens_by_batch ON tallyboard.journal_tokens (journal_id);

-- Entries as they are with the journal: each takes the place of the one in leaderboard_entries.
CREATE TABLE tallyboard.journal_entries (
    window_id bigint NOT NULL,
    member text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    -- Null only within a transaction that adds to the journal.
    score double precision,
    updated_at timestamptz,
    metadata bytea,
    PRIMARY KEY (window_id, member)
);

CREATE INDEX journal_entries_by_score ON tallyboard.journal_entries (window_id, score);
CREATE INDEX journal_entries_by_partition ON tallyboard.journal_entries (partition);

-- For ranks and pages of windows that are not archived, while Redis is away.
CREATE INDEX leaderboard_entries_by_score ON tallyboard.leaderboard_entries (window_id, score);
-- Request ids that came while Redis was away, and what they stand for.
CREATE TABLE tallyboard.journal_requests (
    tenant text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, request_id)
);

CREATE INDEX journal_requests_by_age ON tallyboard.journal_requests (created_at);

-- The token windows of partitions as of their checkpoints, with the durability journaled: a ring
-- as its fields and values one behind the other, any other token as its one value.
CREATE TABLE tallyboard.tokens (
    partition integer NOT NULL,
    token bytea NOT NULL,
    ring boolean NOT NULL,
    held bytea[] NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (partition, token)
);

CREATE INDEX tokens_by_end ON tallyboard.tokens (expires_at);

-- Batches, or parts of them, that were journaled and could not be applied: for people to look at.
CREATE TABLE tallyboard.journal_rejected (
    journal_id bigint NOT NULL,
    partition integer NOT NULL,
    reason text NOT NULL,
    batch text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
