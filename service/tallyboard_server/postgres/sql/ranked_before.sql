-- How many entries of an archived window rank before a position, by halving the range of ranks
-- in which the first one that does not must be. `before` says what of an entry at rank `middle`.
WITH RECURSIVE search (low, high) AS (
    SELECT 0::bigint, entry_count
    FROM tallyboard.leaderboard_windows
    WHERE window_id = %(window_id)s
    UNION ALL
    SELECT
        CASE WHEN probe.before THEN (low + high + 1) / 2 ELSE low END,
        CASE WHEN probe.before THEN high ELSE (low + high + 1) / 2 - 1 END
    FROM search
    CROSS JOIN LATERAL (
        SELECT {before} AS before
        FROM tallyboard.leaderboard_entries AS entry
        WHERE entry.window_id = %(window_id)s
            AND entry.rank = (low + high + 1) / 2
        LIMIT 1
    ) AS probe
    WHERE low < high
)
SELECT low FROM search WHERE low = high
