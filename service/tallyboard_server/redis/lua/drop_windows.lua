-- Drops windows of a deleted board, which takes no more scores.
--
-- KEYS: set of the board's windows here, dirty set
-- ARGV: start and end of the name of a window's key, around its kind ("{tb:1}:" and ":<board>:"),
--   most windows
-- Answers: windows left, {window, entries...}. The windows' keys can't be passed as KEYS, for they
-- are known only here; they carry the hash tag of the set.

local dropped = {}
for _, window in ipairs(redis.call('SPOP', KEYS[1], ARGV[3])) do
  dropped[#dropped + 1] = window
  dropped[#dropped + 1] = redis.call('ZCARD', ARGV[1] .. 'z' .. ARGV[2] .. window)
  for kind in string.gmatch('zhystY', '%a') do
    redis.call('UNLINK', ARGV[1] .. kind .. ARGV[2] .. window)
  end
  redis.call('SREM', KEYS[2], ARGV[1] .. 'h' .. ARGV[2] .. window)
end
return { redis.call('SCARD', KEYS[1]), dropped }
