-- Adds deltas to shards of counters. Lua's numbers are doubles, exact up to 2^53, and a sum just
-- beyond is rounded back to 2^53: a shard stays below that. A frozen shard ("w<integer>") is not
-- a number and takes no delta.

local LIMIT = 9007199254740991
local PLAIN = 1125899906842624 -- up to here every Redis writes a number as an integer
local CHUNK = 2000 -- unpack() takes fewer than 8,000 values
local operation, values = {}, {}

function operation.check(first, before)
  local refused = {}
  for low = first, #KEYS, CHUNK do
    local high = math.min(low + CHUNK - 1, #KEYS)
    local current = redis.call('MGET', unpack(KEYS, low, high))
    for i = low, high do
      local value = tonumber(current[i - low + 1] or '0')
      if value then value = value + ARGV[before + i] end
      if value and value <= LIMIT and value >= -LIMIT then
        values[i] = value
      elseif #refused < CHUNK then
        refused[#refused + 1] = i - first + 1
      end
    end
  end
  return refused
end

function operation.write(first)
  for low = first, #KEYS, CHUNK do
    local high = math.min(low + CHUNK - 1, #KEYS)
    local pair = {}
    for i = low, high do
      local value = values[i]
      if value > PLAIN or value < -PLAIN then value = string.format('%.0f', value) end
      pair[2 * (i - low) + 1] = KEYS[i]
      pair[2 * (i - low) + 2] = value
    end
    redis.call('MSET', unpack(pair))
    redis.call('SADD', KEYS[2], unpack(KEYS, low, high))
  end
end
