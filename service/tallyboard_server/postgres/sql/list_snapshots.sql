-- One page of a board's snapshots, the latest day first, with the standing of a member.
SELECT
    head.snapshot_id, head.board_key, head."window", head.day,
    tallyboard.micros(head.taken_at), head.entry_count, entry.rank, entry.score
FROM tallyboard.leaderboard_snapshots AS head
LEFT JOIN tallyboard.leaderboard_snapshot_entries AS entry
    ON entry.snapshot_id = head.snapshot_id
    AND entry.member = %(member)s
WHERE head.board_key = %(board_key)s
    AND (%(window)s::text IS NULL OR head."window" = %(window)s)
    AND (
        %(after_day)s::date IS NULL
        OR (head.day, head."window") < (%(after_day)s, %(after_window)s COLLATE "C")
    )
ORDER BY head.day DESC, head."window" DESC
LIMIT %(limit)s
