-- What the mean of a window's scores is made of: their number, their sum, and by what it has to
-- be multiplied. Scores near the end of the doubles are added up scaled down: Postgres takes
-- neither a sum that overflows nor a quotient that underflows.
WITH extreme AS MATERIALIZED (
    SELECT CASE WHEN greatest(max(score), -min(score)) > 1e290 THEN 2e20 ELSE 1 END::float8 AS scale
    FROM tallyboard.leaderboard_entries
    WHERE window_id = %(window_id)s
)
SELECT
    count(*),
    sum(CASE WHEN scale > 1 AND abs(score) < 1 THEN 0 ELSE score / scale END),
    min(scale)
FROM tallyboard.leaderboard_entries
CROSS JOIN extreme
WHERE window_id = %(window_id)s
