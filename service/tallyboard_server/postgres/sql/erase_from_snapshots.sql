-- Removes a member from locked snapshots, closing the gaps in the ranks. Answers with the
-- board_key of each snapshot that had it.
WITH gone AS (
    DELETE FROM tallyboard.leaderboard_snapshot_entries
    WHERE snapshot_id = ANY(%(snapshot_ids)s::bigint[])
        AND member = %(member)s
    RETURNING snapshot_id, rank
), moved AS (
    UPDATE tallyboard.leaderboard_snapshot_entries AS entry SET rank = entry.rank - 1
    FROM gone
    WHERE entry.snapshot_id = gone.snapshot_id
        AND entry.rank > gone.rank
)
UPDATE tallyboard.leaderboard_snapshots AS head SET entry_count = entry_count - 1
FROM gone
WHERE head.snapshot_id = gone.snapshot_id
RETURNING head.board_key
