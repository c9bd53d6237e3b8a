-- What the mean of a window's scores is made of: the sum of those below 1, and that of the others,
-- times 2^-32 so that it can't overflow.
SELECT
    coalesce(sum(entry.score) FILTER (WHERE abs(entry.score) < 1), 0),
    coalesce(sum(entry.score * 2.3283064365386963e-10::float8) FILTER (WHERE abs(entry.score) >= 1), 0)
FROM {entries}
