-- Writes staged entries. What did not change is left alone: a checkpoint that is written a second
-- time costs no new rows.
INSERT INTO tallyboard.leaderboard_entries AS entry (
    window_id, member, partition, score, updated_at, metadata
)
SELECT window_id, member, partition, score, tallyboard.moment(updated_at), metadata
FROM pg_temp.staged_entries
WHERE score IS NOT NULL
ORDER BY window_id, member
ON CONFLICT (window_id, member) DO UPDATE SET
    partition = excluded.partition,
    score = excluded.score,
    updated_at = excluded.updated_at,
    metadata = excluded.metadata
WHERE entry.score <> excluded.score
    OR entry.updated_at <> excluded.updated_at
    OR entry.metadata <> excluded.metadata
    OR entry.partition <> excluded.partition
