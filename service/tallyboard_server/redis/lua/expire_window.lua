-- Gives an archived window a time to end, unless it was written to since.
-- KEYS: entries, ranking, dirty members, members in flight    ARGV: seconds to live

local meta = redis.call('HGET', KEYS[1], '')
if not meta or string.sub(meta, 1, 1) ~= 'c' then return 0 end
if redis.call('EXISTS', KEYS[3], KEYS[4]) > 0 then return 0 end
local at = redis.call('TIME')[1] + ARGV[1]
redis.call('EXPIREAT', KEYS[1], at)
redis.call('EXPIREAT', KEYS[2], at)
return 1
