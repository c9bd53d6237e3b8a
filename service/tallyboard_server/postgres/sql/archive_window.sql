-- Ranks all entries of a window. Rows that have these ranks already are left alone. {order} is
-- the order of the ranking, {by_score} its first part. The window must be locked for the update,
-- so that nobody moves a row meanwhile.
WITH ranked AS MATERIALIZED (
    SELECT
        ctid AS place,
        row_number() OVER (ORDER BY {order}) AS rank,
        rank() OVER (ORDER BY {by_score}) AS competition_rank,
        dense_rank() OVER (ORDER BY {by_score}) AS dense_rank
    FROM tallyboard.leaderboard_entries
    WHERE window_id = %(window_id)s
), placed AS MATERIALIZED (
    -- Rows are rewritten in the order in which they lie: in that of the ranking, a million of
    -- them take half as long again.
    SELECT place, rank, competition_rank, dense_rank
    FROM ranked
    ORDER BY place
)
UPDATE tallyboard.leaderboard_entries AS entry SET
    rank = placed.rank,
    competition_rank = placed.competition_rank,
    dense_rank = placed.dense_rank
FROM placed
WHERE entry.ctid = placed.place
    AND entry.window_id = %(window_id)s
    AND (entry.rank, entry.competition_rank, entry.dense_rank)
        IS DISTINCT FROM (placed.rank, placed.competition_rank, placed.dense_rank)
