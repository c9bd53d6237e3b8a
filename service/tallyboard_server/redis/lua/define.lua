-- Writes a definition or a fence, unless what is there is of a newer revision.
-- KEYS: definition or fence    ARGV: revision, text behind it, seconds to live (0: for good)

local held = redis.call('GET', KEYS[1])
if held and tonumber(string.match(held, '^%d+')) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2])
if ARGV[3] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return 1
