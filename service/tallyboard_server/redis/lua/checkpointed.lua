-- Forgets what a checkpoint took, once it is committed. When another checkpoint has begun since,
-- what was taken is dirty again and stays; the rows of the journal are gone in any case.
-- Answers 1 when it was forgotten.
-- KEYS: in-flight set, checkpoint id, journaled
-- ARGV: id of this checkpoint, rows of the journal that it has
-- What windows have in flight is in sets that are found as in checkpoint.lua.

local CHUNK = 2000 -- unpack() takes fewer than 8,000 values
for low = 2, #ARGV, CHUNK do
  redis.call('SREM', KEYS[3], unpack(ARGV, low, math.min(low + CHUNK - 1, #ARGV)))
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
for _, key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.match(key, '^{tb:%d+}:h:') then
    redis.call('UNLINK', (string.gsub(key, '}:h:', '}:Y:', 1)))
  end
end
redis.call('UNLINK', KEYS[1], KEYS[2])
return 1
