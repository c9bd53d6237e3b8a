-- The snapshots, of some boards, that hold a member, locked. OFFSET 0: see lock_windows_of_member.
SELECT head.snapshot_id
FROM tallyboard.leaderboard_snapshots AS head
WHERE head.board_key = ANY(%(board_keys)s::text[])
    AND EXISTS (
        SELECT FROM tallyboard.leaderboard_snapshot_entries AS entry
        WHERE entry.snapshot_id = head.snapshot_id AND entry.member = %(member)s
        OFFSET 0
    )
ORDER BY head.snapshot_id
FOR UPDATE OF head
