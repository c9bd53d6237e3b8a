-- How many entries fulfil a condition: the stored ones and the journal's, without those stored ones
-- in whose place the journal has others.
SELECT (
    SELECT count(*)
    FROM tallyboard.leaderboard_entries AS entry
    WHERE entry.window_id = %(window_id)s AND {condition}
) + (
    SELECT count(*)
    FROM tallyboard.journal_entries AS entry
    WHERE entry.window_id = %(window_id)s AND {condition}
) - (
    SELECT count(*)
    FROM tallyboard.journal_entries AS newer
    JOIN tallyboard.leaderboard_entries AS entry
        ON entry.window_id = newer.window_id AND entry.member = newer.member
    WHERE newer.window_id = %(window_id)s AND {condition}
)
