-- One page of a board's windows: first what has no start, then the newest start first.
SELECT {columns}
FROM tallyboard.leaderboard_windows AS held
WHERE held.board_key = %(board_key)s
    AND {kind}
    AND (
        %(after)s::text IS NULL
        OR (coalesce(held.starts_at, 'infinity'), held."window")
            < (coalesce(tallyboard.moment(%(after_start)s), 'infinity'), %(after)s COLLATE "C")
    )
ORDER BY coalesce(held.starts_at, 'infinity') DESC, held."window" DESC
LIMIT %(limit)s
