-- Counters with what the journal adds to them: the value as of the last checkpoints (null: there is
-- none, or it was deleted), and the sum of the journal's increments (null: there are none).
SELECT asked.counter, held.value, journaled.delta
FROM (SELECT DISTINCT unnest(%(counters)s::text[]) COLLATE "C" AS counter) AS asked
LEFT JOIN tallyboard.counters AS held
    ON held.tenant = %(tenant)s AND held.counter = asked.counter
LEFT JOIN LATERAL (
    SELECT sum(part.delta) AS delta
    FROM tallyboard.journal_increments AS part
    WHERE part.tenant = %(tenant)s AND part.counter = asked.counter
) AS journaled ON true
