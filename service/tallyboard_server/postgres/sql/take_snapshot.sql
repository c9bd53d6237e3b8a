-- Copies the standing of a window, or its best `limit` entries (null: all), into a snapshot.
-- {order} is the order of the ranking.
INSERT INTO tallyboard.leaderboard_snapshot_entries (
    snapshot_id, rank, member, score, updated_at, metadata
)
SELECT %(snapshot_id)s, row_number() OVER (ORDER BY {order}), member, score, updated_at, metadata
FROM (
    SELECT member, score, updated_at, metadata
    FROM tallyboard.leaderboard_entries
    WHERE window_id = %(window_id)s
    ORDER BY {order}
    LIMIT %(limit)s
) AS best
