-- How many entries with the same score rank before each of these members.
SELECT member, place
FROM (
    SELECT
        member,
        row_number() OVER (PARTITION BY score ORDER BY {order}) - 1 AS place
    FROM (
        SELECT held.member, held.score, held.updated_at
        FROM tallyboard.leaderboard_entries AS held
        WHERE held.window_id = %(window_id)s AND held.score = ANY(%(scores)s::float8[])
            AND NOT EXISTS (
                SELECT FROM tallyboard.journal_entries AS newer
                WHERE newer.window_id = %(window_id)s AND newer.member = held.member
            )
        UNION ALL
        SELECT newer.member, newer.score, newer.updated_at
        FROM tallyboard.journal_entries AS newer
        WHERE newer.window_id = %(window_id)s AND newer.score = ANY(%(scores)s::float8[])
    ) AS entry
) AS tied
WHERE member = ANY(%(members)s::text[])
