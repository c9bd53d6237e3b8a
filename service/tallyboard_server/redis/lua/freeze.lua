-- Freezes a shard of a counter that becomes wide; again changes nothing. Answers its value.
-- KEYS: incarnation, dirty set, shard    ARGV: incarnation expected

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return {'fenced', incarnation or ''} end
local value = redis.call('GET', KEYS[3]) or '0'
if string.sub(value, 1, 1) == 'w' then return {'ok', string.sub(value, 2)} end
redis.call('SET', KEYS[3], 'w' .. value)
redis.call('SADD', KEYS[2], KEYS[3])
return {'ok', value}
