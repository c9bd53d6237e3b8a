-- How many entries with the same score rank before each of these members.
SELECT member, place
FROM (
    SELECT
        entry.member,
        row_number() OVER (PARTITION BY entry.score ORDER BY {order}) - 1 AS place
    FROM {entries}
    WHERE entry.score = ANY(%(scores)s::float8[])
) AS tied
WHERE member = ANY(%(members)s::text[])
