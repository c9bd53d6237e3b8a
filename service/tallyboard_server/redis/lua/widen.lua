-- Gives a wide counter its first value, the sum of its frozen shards, unless it has one.
-- KEYS: incarnation, dirty set, wide key    ARGV: incarnation expected, sum

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return {'fenced', incarnation or ''} end
if redis.call('SETNX', KEYS[3], ARGV[2]) == 1 then redis.call('SADD', KEYS[2], KEYS[3]) end
return {'ok'}
