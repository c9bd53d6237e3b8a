-- The first entries, in an order, of those that fulfil a condition. Each table gives its own first
-- ones, from its index by score, so that no more is read than is asked for.
SELECT member, score, tallyboard.micros(updated_at), metadata
FROM (
    (
        SELECT entry.member, entry.score, entry.updated_at, entry.metadata
        FROM tallyboard.leaderboard_entries AS entry
        WHERE entry.window_id = %(window_id)s AND {condition} AND NOT EXISTS (
            SELECT FROM tallyboard.journal_entries AS newer
            WHERE newer.window_id = %(window_id)s AND newer.member = entry.member
        )
        ORDER BY {order}
        LIMIT %(most)s
    )
    UNION ALL
    (
        SELECT entry.member, entry.score, entry.updated_at, entry.metadata
        FROM tallyboard.journal_entries AS entry
        WHERE entry.window_id = %(window_id)s AND {condition}
        ORDER BY {order}
        LIMIT %(most)s
    )
) AS entry
ORDER BY {order}
LIMIT %(limit)s OFFSET %(offset)s
