-- One page of a tenant's counters, the greatest value first and equal ones by name.
SELECT counter, value, updated_at
FROM tallyboard.counters
WHERE tenant = %(tenant)s
    AND value IS NOT NULL
    AND counter >= %(prefix)s
    AND (%(below)s::text IS NULL OR counter < %(below)s)
ORDER BY value DESC, counter
LIMIT %(limit)s
