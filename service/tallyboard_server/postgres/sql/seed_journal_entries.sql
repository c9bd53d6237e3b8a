-- Makes rows for members whose entries the journal changes for the first time, as they are stored.
INSERT INTO tallyboard.journal_entries (window_id, member, partition, score, updated_at, metadata)
SELECT given.window_id, given.member, given.partition, stored.score, stored.updated_at, stored.metadata
FROM unnest(%(window_id)s::bigint[], %(member)s::text[], %(partition)s::integer[])
    AS given (window_id, member, partition)
LEFT JOIN tallyboard.leaderboard_entries AS stored
    ON stored.window_id = given.window_id AND stored.member = given.member COLLATE "C"
ORDER BY given.window_id, given.member COLLATE "C"
ON CONFLICT (window_id, member) DO NOTHING
