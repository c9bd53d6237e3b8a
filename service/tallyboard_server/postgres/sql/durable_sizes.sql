-- How many entries the windows of a board have that are not archived; counted as durable_count.sql
-- does it.
SELECT held."window", (
    SELECT count(*)
    FROM tallyboard.leaderboard_entries AS entry
    WHERE entry.window_id = held.window_id
) + (
    SELECT count(*)
    FROM tallyboard.journal_entries AS entry
    WHERE entry.window_id = held.window_id
) - (
    SELECT count(*)
    FROM tallyboard.journal_entries AS newer
    JOIN tallyboard.leaderboard_entries AS entry
        ON entry.window_id = newer.window_id AND entry.member = newer.member
    WHERE newer.window_id = held.window_id
)
FROM tallyboard.leaderboard_windows AS held
WHERE held.board_key = %(board_key)s AND held.state <> 'ARCHIVED'
