-- Closes a window: from now on only imports are taken. In a partition that has nothing of it, too.
-- KEYS: incarnation, entries, windows here    ARGV: incarnation expected, window
-- Answers: {"fenced", found}, or {"ok"}.

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end
local meta = redis.call('HGET', KEYS[2], '') or 'o' .. struct.pack('>dd', 0, 0)
redis.call('HSET', KEYS[2], '', 'c' .. string.sub(meta, 2))
redis.call('SADD', KEYS[3], ARGV[2])
return { 'ok' }
