-- Removes at most `limit` entries of a board's first snapshot, and the snapshot when none is left.
-- Answers with the number of entries, and nothing when there is no snapshot.
WITH held AS MATERIALIZED (
    SELECT snapshot_id
    FROM tallyboard.leaderboard_snapshots
    WHERE board_key = %(board_key)s
    ORDER BY "window", day
    LIMIT 1
    FOR UPDATE
), doomed AS MATERIALIZED (
    SELECT entry.snapshot_id, entry.member
    FROM held
    CROSS JOIN LATERAL (
        SELECT snapshot_id, member
        FROM tallyboard.leaderboard_snapshot_entries
        WHERE snapshot_id = held.snapshot_id
        ORDER BY member
        LIMIT %(limit)s
    ) AS entry
), gone AS (
    DELETE FROM tallyboard.leaderboard_snapshot_entries AS entry
    USING doomed
    WHERE entry.snapshot_id = doomed.snapshot_id AND entry.member = doomed.member
), emptied AS (
    DELETE FROM tallyboard.leaderboard_snapshots
    USING held
    WHERE leaderboard_snapshots.snapshot_id = held.snapshot_id
        AND (SELECT count(*) FROM doomed) < %(limit)s
)
SELECT (SELECT count(*) FROM doomed) FROM held
