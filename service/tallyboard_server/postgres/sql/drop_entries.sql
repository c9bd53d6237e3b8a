-- Removes entries that are staged as gone.
DELETE FROM tallyboard.leaderboard_entries AS entry
USING pg_temp.staged_entries AS staged
WHERE staged.score IS NULL
    AND entry.window_id = staged.window_id
    AND entry.member = staged.member
