-- A partition's node is one of several, each with lives of its own.

ALTER TABLE tallyboard.partitions
    -- The run_id of the node when the partition was looked at last: another one may have lost
    -- something.
    ADD COLUMN redis_life text COLLATE "C" NOT NULL DEFAULT '';

ALTER TABLE tallyboard.store DROP COLUMN redis_life;
