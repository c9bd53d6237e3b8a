-- Removes at most `limit` entries of a board's first window, and the window when none is left.
-- Answers with the number of entries, and nothing when there is no window.
WITH held AS MATERIALIZED (
    SELECT window_id
    FROM tallyboard.leaderboard_windows
    WHERE board_key = %(board_key)s
    ORDER BY "window"
    LIMIT 1
    FOR UPDATE
), doomed AS MATERIALIZED (
    SELECT entry.window_id, entry.member
    FROM held
    CROSS JOIN LATERAL (
        SELECT window_id, member
        FROM tallyboard.leaderboard_entries
        WHERE window_id = held.window_id
        ORDER BY member
        LIMIT %(limit)s
    ) AS entry
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
SELECT (SELECT count(*) FROM doomed) FROM held
