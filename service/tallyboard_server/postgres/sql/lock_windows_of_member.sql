-- The windows, of some boards, that hold a member, kept from checkpoints until the end of the
-- transaction. `window` null: all windows. OFFSET 0 makes it one look-up a window: a join may
-- read all entries that there are.
SELECT held.window_id, held.board_key, held.state
FROM tallyboard.leaderboard_windows AS held
WHERE held.board_key = ANY(%(board_keys)s::text[])
    AND (%(window)s::text IS NULL OR held."window" = %(window)s)
    AND EXISTS (
        SELECT FROM tallyboard.leaderboard_entries AS entry
        WHERE entry.window_id = held.window_id AND entry.member = %(member)s
        OFFSET 0
    )
ORDER BY held.board_key, held."window"
FOR UPDATE OF held
