-- Loads entries of a window that Redis no longer has, step by step; the last step makes it a
-- window again. Until then nothing else writes to it. It is among the board's windows from the
-- first step on, so that whoever is erased is looked for in it, and ends by itself if nobody goes
-- on.
--
-- KEYS: incarnation, ranking, entries, windows here
-- ARGV: incarnation expected, window, seconds to live (0: for good), "first", "more" or the meta
--   with the last step, then element, member, record, ...
-- Answers: {"fenced", found}, {"there"} (somebody else has loaded it) or {"ok"}.

local CHUNK = 1000 -- unpack() takes fewer than 8,000 values

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end
if redis.call('HEXISTS', KEYS[3], '') == 1 then return { 'there' } end

if ARGV[4] == 'first' then redis.call('UNLINK', KEYS[2], KEYS[3]) end
redis.call('SADD', KEYS[4], ARGV[2])
for low = 5, #ARGV, 3 * CHUNK do
  local ranked, held, n = {}, {}, 0
  for i = low, math.min(low + 3 * CHUNK - 1, #ARGV), 3 do
    ranked[n + 1], ranked[n + 2] = struct.unpack('>d', ARGV[i + 2], 9), ARGV[i]
    held[n + 1], held[n + 2] = ARGV[i + 1], ARGV[i + 2]
    n = n + 2
  end
  redis.call('ZADD', KEYS[2], unpack(ranked))
  redis.call('HSET', KEYS[3], unpack(held))
end
local is_last = ARGV[4] ~= 'first' and ARGV[4] ~= 'more'
if is_last then redis.call('HSET', KEYS[3], '', ARGV[4]) end
for _, key in ipairs({ KEYS[2], KEYS[3] }) do
  if is_last and ARGV[3] == '0' then
    redis.call('PERSIST', key)
  else
    redis.call('EXPIREAT', key, redis.call('TIME')[1] + math.max(ARGV[3], 60))
  end
end
return { 'ok' }
