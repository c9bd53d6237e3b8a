-- Takes away the time to end that open windows were given: their board's retention, grace or seasons
-- may have changed. The next score gives them the new one, and the keeper drops them when it is
-- over.
--
-- KEYS: set of the board's windows here
-- ARGV: start and end of the name of a window's key, around its kind, as in drop_windows.lua

for _, window in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local meta = redis.call('HGET', ARGV[1] .. 'h' .. ARGV[2] .. window, '')
  if meta and string.sub(meta, 1, 1) == 'o' then
    for kind in string.gmatch('zhy', '%a') do
      redis.call('PERSIST', ARGV[1] .. kind .. ARGV[2] .. window)
    end
  end
end
