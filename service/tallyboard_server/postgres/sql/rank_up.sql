-- Closes the gaps that an archived entry left in the ranks of its window. It was alone with its
-- score if nobody else has it.
UPDATE tallyboard.leaderboard_entries SET
    rank = rank - 1,
    competition_rank = CASE
        WHEN score = %(score)s::float8 THEN competition_rank
        ELSE competition_rank - 1
    END,
    dense_rank = dense_rank - CASE
        WHEN EXISTS (
            SELECT FROM tallyboard.leaderboard_entries AS tied
            WHERE tied.window_id = %(window_id)s
                AND tied.rank IN (%(rank)s - 1, %(rank)s + 1)
                AND tied.score = %(score)s::float8
        ) THEN 0
        ELSE 1
    END
WHERE window_id = %(window_id)s
    AND rank > %(rank)s
