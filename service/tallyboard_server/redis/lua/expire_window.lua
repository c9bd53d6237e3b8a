-- Gives an archived window a time to end, unless it was written to since.
-- KEYS: entries, ranking, dirty members, members in flight    ARGV: when (seconds since the epoch)

local meta = redis.call('HGET', KEYS[1], '')
if not meta or string.sub(meta, 1, 1) ~= 'c' then return 0 end
if redis.call('EXISTS', KEYS[3], KEYS[4]) > 0 then return 0 end
redis.call('EXPIREAT', KEYS[1], ARGV[1])
redis.call('EXPIREAT', KEYS[2], ARGV[1])
return 1
