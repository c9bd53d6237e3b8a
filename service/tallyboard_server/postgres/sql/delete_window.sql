-- Removes at most `limit` entries of a window, and the window when none is left. Answers whether
-- it is gone.
WITH held AS MATERIALIZED (
    SELECT window_id
    FROM tallyboard.leaderboard_windows
    WHERE window_id = %(window_id)s
    FOR UPDATE
), doomed AS MATERIALIZED (
    SELECT entry.window_id, entry.member
    FROM tallyboard.leaderboard_entries AS entry
    JOIN held ON held.window_id = entry.window_id
    ORDER BY entry.member
    LIMIT %(limit)s
), gone AS (
    DELETE FROM tallyboard.leaderboard_entries AS entry
    USING doomed
    WHERE entry.window_id = doomed.window_id AND entry.member = doomed.member
), emptied AS (
    DELETE FROM tallyboard.leaderboard_windows
    USING held
    WHERE leaderboard_windows.window_id = held.window_id
        AND (SELECT count(*) FROM doomed) < %(limit)s
)
SELECT (SELECT count(*) FROM doomed) < %(limit)s
