-- The next tenants that have counters or leaderboards, by name: from one to the next through the
-- indexes, however much each of them has.
WITH RECURSIVE next (tenant) AS (
    SELECT least(
        (SELECT min(tenant) FROM tallyboard.counters WHERE tenant > %(after)s),
        (SELECT min(tenant) FROM tallyboard.leaderboards
            WHERE tenant > %(after)s AND deleted_at IS NULL)
    )
    UNION ALL
    SELECT least(
        (SELECT min(tenant) FROM tallyboard.counters WHERE tenant > next.tenant),
        (SELECT min(tenant) FROM tallyboard.leaderboards
            WHERE tenant > next.tenant AND deleted_at IS NULL)
    )
    FROM next
    WHERE next.tenant IS NOT NULL
)
SELECT tenant FROM next WHERE tenant IS NOT NULL LIMIT %(limit)s
