-- All entries of a window, for a statement that reads the whole of it anyway.
(
    SELECT held.member, held.score, held.updated_at
    FROM tallyboard.leaderboard_entries AS held
    WHERE held.window_id = %(window_id)s AND NOT EXISTS (
        SELECT FROM tallyboard.journal_entries AS newer
        WHERE newer.window_id = %(window_id)s AND newer.member = held.member
    )
    UNION ALL
    SELECT newer.member, newer.score, newer.updated_at
    FROM tallyboard.journal_entries AS newer
    WHERE newer.window_id = %(window_id)s
) AS entry
