-- Takes windows that have ended their time out of a board's set of windows.
-- KEYS: windows here    ARGV: what the keys of windows' entries begin with

for _, window in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if redis.call('EXISTS', ARGV[1] .. window) == 0 then redis.call('SREM', KEYS[1], window) end
end
