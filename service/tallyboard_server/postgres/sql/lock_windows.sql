-- Finds windows of boards that there are, and keeps others from ranking or deleting them until
-- the transaction ends. Other checkpoints may go on writing entries to them.
SELECT held.board_key, held."window", held.window_id
FROM tallyboard.leaderboard_windows AS held
JOIN unnest(%(board_keys)s::text[], %(windows)s::text[]) AS given (board_key, "window")
    ON held.board_key = given.board_key COLLATE "C"
    AND held."window" = given."window" COLLATE "C"
JOIN tallyboard.leaderboards AS board ON board.board_key = held.board_key
WHERE board.deleted_at IS NULL
ORDER BY held.board_key, held."window"
FOR KEY SHARE OF held
