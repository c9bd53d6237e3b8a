-- How many entries fulfil a condition: the stored ones and the journal's, without those stored ones
-- in whose place the journal has others. Those are looked for from whichever has fewer; the OFFSETs
-- keep the planner, which may not know, from doing it the other way.
WITH stored AS MATERIALIZED (
    SELECT count(*) AS entries
    FROM tallyboard.leaderboard_entries AS entry
    WHERE entry.window_id = %(window_id)s AND {condition}
)
SELECT stored.entries + (
    SELECT count(*)
    FROM tallyboard.journal_entries AS entry
    WHERE entry.window_id = %(window_id)s AND {condition}
) - CASE
    WHEN stored.entries <= (
        SELECT count(*)
        FROM (
            SELECT
            FROM tallyboard.journal_entries
            WHERE window_id = %(window_id)s
            LIMIT (SELECT entries FROM stored)
        ) AS newer
    ) THEN (
        SELECT count(*)
        FROM tallyboard.leaderboard_entries AS entry
        WHERE entry.window_id = %(window_id)s AND {condition} AND EXISTS (
            SELECT
            FROM tallyboard.journal_entries AS newer
            WHERE newer.window_id = %(window_id)s AND newer.member = entry.member
            OFFSET 0
        )
    )
    ELSE (
        SELECT count(*)
        FROM (
            SELECT member
            FROM tallyboard.journal_entries
            WHERE window_id = %(window_id)s
            OFFSET 0
        ) AS newer
        CROSS JOIN LATERAL (
            SELECT
            FROM tallyboard.leaderboard_entries AS entry
            WHERE entry.window_id = %(window_id)s AND entry.member = newer.member AND {condition}
            OFFSET 0
        ) AS entry
    )
END
FROM stored
