-- How many entries are between some scores: bucket 0 holds those better than the first of them,
-- bucket 1 those as good as it and better than the second, and so on. Counted as durable_count.sql
-- does it. `key` is the score, negated where the greatest ranks first, and `keys` those of the
-- scores, ascending.
SELECT bucket, sum(entries)::bigint
FROM (
    SELECT width_bucket({key}, %(keys)s::float8[]) AS bucket, count(*) AS entries
    FROM tallyboard.leaderboard_entries AS entry
    WHERE entry.window_id = %(window_id)s AND {better}
    GROUP BY bucket
    UNION ALL
    SELECT width_bucket({key}, %(keys)s::float8[]) AS bucket, count(*)
    FROM tallyboard.journal_entries AS entry
    WHERE entry.window_id = %(window_id)s AND {better}
    GROUP BY bucket
    UNION ALL
    SELECT width_bucket({key}, %(keys)s::float8[]) AS bucket, -count(*)
    FROM tallyboard.journal_entries AS newer
    JOIN tallyboard.leaderboard_entries AS entry
        ON entry.window_id = newer.window_id AND entry.member = newer.member
    WHERE newer.window_id = %(window_id)s AND {better}
    GROUP BY bucket
) AS part
GROUP BY bucket
