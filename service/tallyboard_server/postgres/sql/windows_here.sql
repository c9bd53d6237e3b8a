-- The windows of boards that are not archived, and those that are named, whatever their state.
SELECT window_id, board_key, "window", state, tallyboard.micros(closes_at)
FROM tallyboard.leaderboard_windows
WHERE board_key = ANY(%(board_keys)s) AND state <> 'ARCHIVED'
UNION
SELECT window_id, board_key, "window", state, tallyboard.micros(closes_at)
FROM tallyboard.leaderboard_windows
JOIN unnest(%(of_boards)s::text[], %(windows)s::text[]) AS given (board_key, "window")
    USING (board_key, "window")
ORDER BY board_key, "window"
