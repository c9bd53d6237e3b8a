-- Drops the entries of a segment that rank at or behind a place: the board has enough better ones.
--
-- KEYS: as in rank.lua, then: dirty set, dirty members
-- ARGV: as in rank.lua, then: incarnation expected, entries expected, score, element
-- Answers: {"fenced", found}; {"changed"}: there are not as many entries as expected, so that the
--          place has to be found anew, or it was done before; {"more"} or {"done"}.

local STEP = 2000 -- unpack() takes fewer than 8,000 values

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[4] then return { 'fenced', incarnation or '' } end
if redis.call('ZCARD', RANKING) ~= tonumber(ARGV[5]) then return { 'changed' } end

local at = before_element(ARGV[6], ARGV[7])
local size = tonumber(ARGV[5])
if at >= size then return { 'done' } end

local first = math.max(at, size - STEP)
local elements, members = range(first, size - 1), {}
for i, found in ipairs(elements) do members[i] = member_of(found) end
local records = redis.call('HMGET', KEYS[3], unpack(members))
redis.call('ZREM', RANKING, unpack(elements))
redis.call('HDEL', KEYS[3], unpack(members))
redis.call('SADD', KEYS[7], unpack(members))
redis.call('SADD', KEYS[6], KEYS[3])

local meta = redis.call('HGET', KEYS[3], '')
local high, low = struct.unpack('>dd', meta, 2)
local is_indexed = redis.call('EXISTS', KEYS[5]) == 1
for _, record in ipairs(records) do
  local score = struct.unpack('>d', record, 9)
  high, low = added(high, low, -score)
  if is_indexed and redis.call('ZCOUNT', RANKING, score, score) == 0 then
    redis.call('ZREM', KEYS[4], string.format('%.17g', score))
  end
end
redis.call('HSET', KEYS[3], '', string.sub(meta, 1, 1) .. struct.pack('>dd', high, low))
return { first > at and 'more' or 'done' }
