-- Applies scores to entries by their boards' policies ("B", "L", "S"), as submit.lua does.
WITH given AS (
    SELECT
        window_id, member COLLATE "C" AS member, score, metadata, policy, descending,
        tallyboard.moment(updated_at) AS updated_at
    FROM unnest(
        %(window_id)s::bigint[], %(member)s::text[], %(score)s::double precision[],
        %(updated_at)s::bigint[], %(metadata)s::bytea[], %(policy)s::text[],
        %(descending)s::boolean[]
    ) AS given (window_id, member, score, updated_at, metadata, policy, descending)
), change AS (
    SELECT
        given.*,
        held.score AS held_score,
        held.score IS NULL
            OR CASE
                WHEN policy <> 'B' THEN given.updated_at >= held.updated_at
                WHEN given.score = held.score THEN given.updated_at < held.updated_at
                ELSE (given.score > held.score) = descending
            END AS wins
    FROM given
    JOIN tallyboard.journal_entries AS held
        ON held.window_id = given.window_id AND held.member = given.member
    -- The same order everywhere, so that two workers wait instead of deadlocking.
    ORDER BY held.window_id, held.member
    FOR UPDATE OF held
)
UPDATE tallyboard.journal_entries AS held SET
    score = CASE
        WHEN change.policy = 'S' AND held_score IS NOT NULL THEN
            -- A sum beyond what a double holds counts for nothing.
            CASE
                WHEN abs(held_score / 2 + change.score / 2) < 8.9e307
                    THEN held_score + change.score
                ELSE held_score
            END
        WHEN wins THEN change.score
        ELSE held.score
    END,
    updated_at = CASE WHEN wins THEN change.updated_at ELSE held.updated_at END,
    metadata = CASE WHEN wins THEN change.metadata ELSE held.metadata END
FROM change
WHERE held.window_id = change.window_id AND held.member = change.member
