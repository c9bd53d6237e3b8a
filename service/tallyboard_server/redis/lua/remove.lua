-- Removes members from windows of boards.
--
-- KEYS, a group: for each of its windows: ranking, entries, dirty members, distinct scores, state
--   of the distinct scores
-- ARGV: number of groups; a group: sort ("d" or "a"), tie break ("e" or "m"), number of windows,
--   member
-- Answers: how many entries went, of each group.
-- A member stays marked as changed: that is how Postgres learns of it.

local operation = {}

function operation.check() return {} end

local function subtract(entries, score)
  local meta = redis.call('HGET', entries, '')
  if not meta then return end -- it is being loaded
  local high, low = struct.unpack('>dd', meta, 2)
  high, low = added(high, low, -score)
  redis.call('HSET', entries, '', string.sub(meta, 1, 1) .. struct.pack('>dd', high, low))
end

local function remove(key, earliest, member)
  local ranking, entries = KEYS[key], KEYS[key + 1]
  local record = redis.call('HGET', entries, member)
  if not record then return 0 end
  local score = struct.unpack('>d', record, 9)
  redis.call('ZREM', ranking, earliest and string.sub(record, 1, 8) .. member or member)
  redis.call('HDEL', entries, member)
  redis.call('SADD', KEYS[key + 2], member)
  redis.call('SADD', KEYS[2], entries)
  subtract(entries, score)
  if redis.call('EXISTS', KEYS[key + 4]) == 1 and redis.call('ZCOUNT', ranking, score, score) == 0 then
    redis.call('ZREM', KEYS[key + 3], string.format('%.17g', score))
  end
  return 1
end

function operation.write(first, before)
  local counts, key, at = {}, first, before + first + 1
  for g = 1, tonumber(ARGV[at - 1]) do
    counts[g] = 0
    for _ = 1, tonumber(ARGV[at + 2]) do
      counts[g] = counts[g] + remove(key, ARGV[at + 1] == 'e', ARGV[at + 3])
      key = key + 5
    end
    at = at + 4
  end
  return counts
end
