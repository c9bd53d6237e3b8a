-- Forgets what a checkpoint took, once it is committed. When another checkpoint has taken it over
-- since, it belongs to that one and stays. Answers 1 when it was forgotten.
-- KEYS: in-flight set, checkpoint id    ARGV: id of this checkpoint
-- What windows have in flight is in sets that are found as in checkpoint.lua.

if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
for _, key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.match(key, '^{tb:%d+}:h:') then
    redis.call('UNLINK', (string.gsub(key, '}:h:', '}:Y:', 1)))
  end
end
redis.call('UNLINK', KEYS[1], KEYS[2])
return 1
