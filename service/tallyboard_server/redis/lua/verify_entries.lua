-- Looks at entries of a window, in one step: their records, their scores in the ranking, and
-- whether that is newer than Postgres.
--
-- KEYS: incarnation, entries, ranking, dirty members, members in flight
-- ARGV: incarnation expected, tie break ("e" or "m"), members (fewer than 4,000)
-- Answers: {"fenced", found}; {"ok", 1 if the window has its meta, entries, size of the ranking,
--          members changed since the last checkpoint, {record or nil...}, {score in the ranking or
--          nil...}, {1: newer, or 0...}}.
-- A member without a record is looked for in the ranking nowhere: its element isn't known.

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end

local meta = redis.call('HEXISTS', KEYS[2], '')
local size, ranked = redis.call('HLEN', KEYS[2]) - meta, redis.call('ZCARD', KEYS[3])
local changed = redis.call('SCARD', KEYS[4]) + redis.call('SCARD', KEYS[5])
if #ARGV == 2 then return { 'ok', meta, size, ranked, changed, {}, {}, {} } end

local records = redis.call('HMGET', KEYS[2], unpack(ARGV, 3))
local elements, newer = {}, {}
for i, record in ipairs(records) do
  local member = ARGV[i + 2]
  local moment = record and ARGV[2] == 'e' and string.sub(record, 1, 8) or ''
  elements[i] = moment .. member
  local is_newer = changed > 0
    and (redis.call('SISMEMBER', KEYS[4], member) == 1
      or redis.call('SISMEMBER', KEYS[5], member) == 1)
  newer[i] = is_newer and 1 or 0
end
local scores = redis.call('ZMSCORE', KEYS[3], unpack(elements))
return { 'ok', meta, size, ranked, changed, records, scores, newer }
