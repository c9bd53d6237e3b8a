-- Makes rows for windows that have none, of boards that there are. The boards must be locked.
INSERT INTO tallyboard.leaderboard_windows (
    board_key, "window", kind, starts_at, ends_at, closes_at, expires_at, changed_at
)
SELECT
    board.board_key,
    given."window",
    given.kind,
    tallyboard.moment(given.starts_at),
    tallyboard.moment(given.ends_at),
    tallyboard.moment(given.ends_at) + board.late_grace * interval '1 second',
    -- Kept while it takes scores, however short its retention.
    CASE WHEN board.retention ->> given.kind IS NOT NULL
        THEN tallyboard.moment(given.ends_at) + interval '1 second'
            * greatest((board.retention ->> given.kind)::bigint, board.late_grace)
    END,
    %(read_at)s
FROM unnest(
    %(board_keys)s::text[], %(windows)s::text[], %(kinds)s::text[],
    %(starts_at)s::bigint[], %(ends_at)s::bigint[]
) AS given (board_key, "window", kind, starts_at, ends_at)
JOIN tallyboard.leaderboards AS board ON board.board_key = given.board_key COLLATE "C"
WHERE board.deleted_at IS NULL
    -- An identity spends a number even on a row that is there.
    AND NOT EXISTS (
        SELECT FROM tallyboard.leaderboard_windows AS old
        WHERE old.board_key = given.board_key COLLATE "C"
            AND old."window" = given."window" COLLATE "C"
    )
-- The same order everywhere: checkpoints that share windows wait instead of deadlocking.
ORDER BY board.board_key, given."window" COLLATE "C"
ON CONFLICT (board_key, "window") DO NOTHING
