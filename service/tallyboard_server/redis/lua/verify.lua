-- Looks at keys of counters, in one step: what they hold, and whether that is newer than Postgres.
--
-- KEYS: incarnation, dirty set, in-flight set, then keys of counters (fewer than 8,000)
-- ARGV: incarnation expected
-- Answers: {"fenced", found}; {"ok", {value or nil...}, {1: newer, or 0...}}.

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end

local newer = {}
for i = 4, #KEYS do
  local is_newer = redis.call('SISMEMBER', KEYS[2], KEYS[i]) == 1
    or redis.call('SISMEMBER', KEYS[3], KEYS[i]) == 1
  newer[i - 3] = is_newer and 1 or 0
end
return { 'ok', redis.call('MGET', unpack(KEYS, 4)), newer }
