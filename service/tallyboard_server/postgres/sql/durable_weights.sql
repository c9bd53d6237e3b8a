-- All scores of a window, each as often as its weights add up to: the stored ones and the journal's,
-- without those stored ones in whose place the journal has others.
(
    SELECT stored.score, 1 AS weight
    FROM tallyboard.leaderboard_entries AS stored
    WHERE stored.window_id = %(window_id)s
    UNION ALL
    SELECT newer.score, 1
    FROM tallyboard.journal_entries AS newer
    WHERE newer.window_id = %(window_id)s
    UNION ALL
    SELECT stored.score, -1
    FROM tallyboard.journal_entries AS newer
    JOIN tallyboard.leaderboard_entries AS stored
        ON stored.window_id = newer.window_id AND stored.member = newer.member
    WHERE newer.window_id = %(window_id)s
) AS entry
