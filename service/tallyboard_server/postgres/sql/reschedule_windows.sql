-- Gives a board's windows the grace and retention of its definition, and seasons their limits.
-- The board must be locked for the update.
WITH wanted AS MATERIALIZED (
    SELECT
        held.window_id,
        season."window" IS NOT NULL AS moved,
        tallyboard.moment(season.starts_at) AS starts_at,
        tallyboard.moment(season.ends_at) AS ends_at
    FROM tallyboard.leaderboard_windows AS held
    LEFT JOIN unnest(
        %(windows)s::text[], %(starts_at)s::bigint[], %(ends_at)s::bigint[]
    ) AS season ("window", starts_at, ends_at)
        ON held.kind = 'SEASON' AND held."window" = season."window" COLLATE "C"
    WHERE held.board_key = %(board_key)s
    ORDER BY held."window"
    FOR NO KEY UPDATE OF held
), dated AS MATERIALIZED (
    SELECT
        held.window_id,
        limits.starts_at,
        limits.ends_at,
        limits.ends_at + board.late_grace * interval '1 second' AS closes_at,
        CASE WHEN board.retention ->> held.kind IS NOT NULL
            THEN limits.ends_at + interval '1 second'
                * greatest((board.retention ->> held.kind)::bigint, board.late_grace)
        END AS expires_at
    FROM wanted
    JOIN tallyboard.leaderboard_windows AS held ON held.window_id = wanted.window_id
    JOIN tallyboard.leaderboards AS board ON board.board_key = held.board_key
    CROSS JOIN LATERAL (
        SELECT
            CASE WHEN moved THEN wanted.starts_at ELSE held.starts_at END AS starts_at,
            CASE WHEN moved THEN wanted.ends_at ELSE held.ends_at END AS ends_at
    ) AS limits
)
UPDATE tallyboard.leaderboard_windows AS held SET
    starts_at = dated.starts_at,
    ends_at = dated.ends_at,
    closes_at = dated.closes_at,
    expires_at = dated.expires_at
FROM dated
WHERE held.window_id = dated.window_id
    AND (held.starts_at, held.ends_at, held.closes_at, held.expires_at)
        IS DISTINCT FROM (dated.starts_at, dated.ends_at, dated.closes_at, dated.expires_at)
