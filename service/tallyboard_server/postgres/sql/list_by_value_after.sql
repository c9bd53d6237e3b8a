-- The page behind a counter and its value. Ties and smaller values are two index ranges: one
-- condition with OR would read every tie again for each page.
(
    SELECT counter, value, updated_at
    FROM tallyboard.counters
    WHERE tenant = %(tenant)s
        AND value = %(value)s::numeric
        AND counter > %(after)s
        AND counter >= %(prefix)s
        AND (%(below)s::text IS NULL OR counter < %(below)s)
    ORDER BY value DESC, counter
    LIMIT %(limit)s
)
UNION ALL
(
    SELECT counter, value, updated_at
    FROM tallyboard.counters
    WHERE tenant = %(tenant)s
        AND value < %(value)s::numeric
        AND counter >= %(prefix)s
        AND (%(below)s::text IS NULL OR counter < %(below)s)
    ORDER BY value DESC, counter
    LIMIT %(limit)s
)
ORDER BY value DESC, counter
LIMIT %(limit)s
