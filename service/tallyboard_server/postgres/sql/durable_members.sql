-- The entries of members, the journal's in the place of the stored ones.
SELECT asked.member, found.score, tallyboard.micros(found.updated_at), found.metadata
FROM unnest(%(members)s::text[]) AS asked (member)
CROSS JOIN LATERAL (
    SELECT entry.score, entry.updated_at, entry.metadata, 0 AS age
    FROM tallyboard.journal_entries AS entry
    WHERE entry.window_id = %(window_id)s AND entry.member = asked.member COLLATE "C"
    UNION ALL
    SELECT entry.score, entry.updated_at, entry.metadata, 1
    FROM tallyboard.leaderboard_entries AS entry
    WHERE entry.window_id = %(window_id)s AND entry.member = asked.member COLLATE "C"
    ORDER BY age
    LIMIT 1
) AS found
