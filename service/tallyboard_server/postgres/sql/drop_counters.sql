-- Removes totals of which no part is left. The step that took the last part holds their locks.
DELETE FROM tallyboard.counters AS total
USING unnest(%(tenants)s::text[], %(counters)s::text[]) AS given (tenant, counter)
WHERE total.tenant = given.tenant COLLATE "C"
    AND total.counter = given.counter COLLATE "C"
    AND total.shards = 0
    AND total.wides = 0
