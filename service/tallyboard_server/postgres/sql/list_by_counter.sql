-- One page of a tenant's counters by name. `below` is where the prefix ends, null for no end.
SELECT counter, value, updated_at
FROM tallyboard.counters
WHERE tenant = %(tenant)s
    AND value IS NOT NULL
    AND counter >= %(prefix)s
    AND (%(below)s::text IS NULL OR counter < %(below)s)
    AND (%(after)s::text IS NULL OR counter > %(after)s)
ORDER BY counter
LIMIT %(limit)s
