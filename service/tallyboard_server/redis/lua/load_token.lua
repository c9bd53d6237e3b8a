-- Sets a token of a partition that is being made anew: a ring, or any other.
-- KEYS: incarnation, token
-- ARGV: mark expected in the incarnation's place, milliseconds to live, "h" and a ring's fields and
--   values, or "s" and the value
-- Answers: {"fenced", found}, or {"ok"}.

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end
if ARGV[3] == 'h' then
  redis.call('HSET', KEYS[2], unpack(ARGV, 4))
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
else
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[2])
end
return { 'ok' }
