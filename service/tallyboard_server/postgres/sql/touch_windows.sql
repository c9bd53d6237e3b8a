-- Says that windows have changed; what was archived is only closed until it is ranked again.
WITH touched AS MATERIALIZED (
    SELECT window_id
    FROM tallyboard.leaderboard_windows
    WHERE window_id = ANY(%(window_ids)s::bigint[])
    ORDER BY board_key, "window"
    FOR NO KEY UPDATE
)
UPDATE tallyboard.leaderboard_windows AS held SET
    changed_at = greatest(held.changed_at, %(read_at)s),
    state = CASE held.state WHEN 'ARCHIVED' THEN 'CLOSED' ELSE held.state END,
    archived_at = NULL,
    entry_count = NULL,
    mean = NULL
FROM touched
WHERE held.window_id = touched.window_id
