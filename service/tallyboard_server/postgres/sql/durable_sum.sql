-- What the mean of a window's scores is made of: the sum of those below 1, and that of the others,
-- times 2^-32 so that it can't overflow.
SELECT
    coalesce(sum(score) FILTER (WHERE abs(score) < 1), 0),
    coalesce(sum(score * 2.3283064365386963e-10::float8) FILTER (WHERE abs(score) >= 1), 0)
FROM (
    SELECT held.score
    FROM tallyboard.leaderboard_entries AS held
    WHERE held.window_id = %(window_id)s AND {kept}
    UNION ALL
    SELECT newer.score
    FROM tallyboard.journal_entries AS newer
    WHERE newer.window_id = %(window_id)s
) AS entry
