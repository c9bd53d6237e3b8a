-- Where COPY puts entries first, once a connection: it can't replace rows. Emptied by each
-- commit, which leaves nothing in Postgres' catalog. A null score means that the entry is gone.
CREATE TEMPORARY TABLE IF NOT EXISTS staged_entries (
    window_id bigint NOT NULL,
    member text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    score double precision,
    updated_at bigint NOT NULL,
    metadata bytea NOT NULL
) ON COMMIT DELETE ROWS
