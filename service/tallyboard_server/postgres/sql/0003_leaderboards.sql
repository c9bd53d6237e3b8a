-- Leaderboards: definitions, windows, entries as of the last checkpoints, and daily standings.

-- Moments go to and from the program as microseconds since 1970, exact from -4712 to 294276.
CREATE FUNCTION tallyboard.moment(micros bigint) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT timestamptz '1970-01-01 00:00:00+00' + micros * interval '1 microsecond' $$;

CREATE FUNCTION tallyboard.micros(moment timestamptz) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT (extract(epoch FROM moment) * 1000000)::bigint $$;

CREATE TABLE tallyboard.leaderboards (
    board_key text COLLATE "C" PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    leaderboard_id text COLLATE "C" NOT NULL,
    definition text NOT NULL,
    revision bigint NOT NULL CHECK (revision > 0),
    -- What the rest needs to know of the definition: the order of a ranking, when windows close
    -- (seconds after their end), and for how many seconds they are kept after it, by kind.
    descending boolean NOT NULL,
    earliest boolean NOT NULL,
    late_grace bigint NOT NULL,
    retention jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Whether Redis holds this revision, or knows that the board is deleted.
    synced boolean NOT NULL DEFAULT false,
    -- Deleted boards stay until all that they held is gone.
    deleted_at timestamptz
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX leaderboards_by_id ON tallyboard.leaderboards (tenant, leaderboard_id)
    WHERE deleted_at IS NULL;
CREATE INDEX leaderboards_by_tenant ON tallyboard.leaderboards (tenant, board_key);
CREATE INDEX leaderboards_unsynced ON tallyboard.leaderboards (board_key) WHERE NOT synced;
CREATE INDEX leaderboards_deleted ON tallyboard.leaderboards (deleted_at, board_key)
    WHERE deleted_at IS NOT NULL;

-- Changes of definitions that may come again, and which board they were about.
CREATE TABLE tallyboard.leaderboard_requests (
    tenant text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    board_key text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, request_id)
);

CREATE INDEX leaderboard_requests_by_age ON tallyboard.leaderboard_requests (created_at);

CREATE TABLE tallyboard.leaderboard_windows (
    window_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    board_key text COLLATE "C" NOT NULL REFERENCES tallyboard.leaderboards,
    "window" text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    starts_at timestamptz,
    ends_at timestamptz,
    -- The end and the grace; the end and the retention, null for windows that are kept for good.
    closes_at timestamptz,
    expires_at timestamptz,
    state text COLLATE "C" NOT NULL DEFAULT 'OPEN'
        CHECK (state IN ('OPEN', 'CLOSED', 'ARCHIVED')),
    -- Redis' clock at the last checkpoint that changed entries.
    changed_at timestamptz NOT NULL,
    -- Of an archived window only: when that was, how many entries, and their mean score.
    archived_at timestamptz,
    entry_count bigint,
    mean double precision,
    UNIQUE (board_key, "window"),
    CHECK ((state = 'ARCHIVED') = (entry_count IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- In the order of lists: newest first, and what has no start before all others.
CREATE INDEX leaderboard_windows_by_start ON tallyboard.leaderboard_windows
    (board_key, (coalesce(starts_at, 'infinity')), "window");
CREATE INDEX leaderboard_windows_by_kind ON tallyboard.leaderboard_windows
    (board_key, kind, (coalesce(starts_at, 'infinity')), "window");
CREATE INDEX leaderboard_windows_due ON tallyboard.leaderboard_windows (closes_at, window_id)
    WHERE state <> 'ARCHIVED' AND closes_at IS NOT NULL;
CREATE INDEX leaderboard_windows_expiring ON tallyboard.leaderboard_windows
    (expires_at, window_id) WHERE expires_at IS NOT NULL;

-- No foreign key: it would cost a look-up an entry, and windows only go when their entries have.
CREATE TABLE tallyboard.leaderboard_entries (
    window_id bigint NOT NULL,
    member text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    score double precision NOT NULL,
    updated_at timestamptz NOT NULL,
    metadata bytea NOT NULL,
    -- Without gaps from 1 in an archived window, meaningless in any other.
    rank bigint,
    competition_rank bigint,
    dense_rank bigint,
    PRIMARY KEY (window_id, member)
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

-- Not unique: while ranks move up, two entries have the same one for a moment.
CREATE INDEX leaderboard_entries_by_rank ON tallyboard.leaderboard_entries (window_id, rank)
    WHERE rank IS NOT NULL;

CREATE TABLE tallyboard.leaderboard_snapshots (
    snapshot_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    board_key text COLLATE "C" NOT NULL REFERENCES tallyboard.leaderboards,
    "window" text COLLATE "C" NOT NULL,
    day date NOT NULL,
    taken_at timestamptz NOT NULL,
    entry_count bigint NOT NULL,
    UNIQUE (board_key, "window", day)
);

CREATE INDEX leaderboard_snapshots_by_day ON tallyboard.leaderboard_snapshots
    (board_key, day, "window");
CREATE INDEX leaderboard_snapshots_by_age ON tallyboard.leaderboard_snapshots
    (taken_at, snapshot_id);

CREATE TABLE tallyboard.leaderboard_snapshot_entries (
    snapshot_id bigint NOT NULL,
    -- From 1, without gaps.
    rank bigint NOT NULL,
    member text COLLATE "C" NOT NULL,
    score double precision NOT NULL,
    updated_at timestamptz NOT NULL,
    metadata bytea NOT NULL,
    PRIMARY KEY (snapshot_id, member)
);

CREATE INDEX leaderboard_snapshot_entries_by_rank ON tallyboard.leaderboard_snapshot_entries
    (snapshot_id, rank);
