-- Entries of some windows in some partitions, in any order.
SELECT window_id, partition, member, score, tallyboard.micros(updated_at), metadata
FROM tallyboard.leaderboard_entries
WHERE window_id = ANY(%s) AND partition = ANY(%s)
