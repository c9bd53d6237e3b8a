-- Loads entries of a window that Redis no longer has, step by step; the last step makes it a
-- window again. Until then nothing else writes to it, and what is there ends by itself.
--
-- KEYS: incarnation, ranking, entries, windows here
-- ARGV: incarnation expected, window, seconds to live, meta ("": more steps follow), then element,
--   member, record, ...
-- Answers: {"fenced", found}, {"there"} (somebody else has loaded it) or {"ok"}.

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end
if redis.call('HEXISTS', KEYS[3], '') == 1 then return { 'there' } end

for i = 5, #ARGV, 3 do
  local score = struct.unpack('>d', ARGV[i + 2], 9)
  redis.call('ZADD', KEYS[2], score, ARGV[i])
  redis.call('HSET', KEYS[3], ARGV[i + 1], ARGV[i + 2])
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[3], '', ARGV[4])
  redis.call('SADD', KEYS[4], ARGV[2])
end
local at = redis.call('TIME')[1] + ARGV[3]
redis.call('EXPIREAT', KEYS[2], at)
redis.call('EXPIREAT', KEYS[3], at)
return { 'ok' }
