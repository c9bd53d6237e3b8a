-- One step of a checkpoint: takes some of what has changed, and answers what it holds. The step that
-- leaves nothing makes the checkpoint a cut: all that the partition holds at that moment is in it.
--
-- KEYS: dirty set, in-flight set, checkpoint id, incarnation, version, journaled
-- ARGV: id of this checkpoint, most keys and entries to take, incarnation expected, number of the
--   last checkpoint that was committed, "first" or "more"
-- Answers: {"fenced", incarnation found or ""};
--          {"older", number of the last checkpoint here}: this Redis has gone back;
--          {"taken"}: another checkpoint has begun since the first step of this one;
--          {"ok", number of the last checkpoint here, which is this one if nothing is left, dirty
--          keys left, changed entries left (-1: not counted), {key...}, {value or nil...},
--          {{entries' key, {member...}, {record or nil...}}...}, {{token, milliseconds to live,
--          "s" or "h", value...}...}, {row in the journal...}}.
-- What an earlier checkpoint took and never finished is dirty again.
-- The dirty set holds keys of counters, of tokens, and of windows' entries: which members of a window
-- have changed is in a set of its own. These keys can't be passed as KEYS, for nobody knows them
-- before; they carry the hash tag of the sets that they are members of, so they are on the same
-- node.

local CHUNK = 2000 -- unpack() takes fewer than 8,000 values
local COUNTABLE = 1000

local incarnation = redis.call('GET', KEYS[4])
if incarnation ~= ARGV[3] then return {'fenced', incarnation or ''} end
local version = tonumber(redis.call('GET', KEYS[5]) or '0')
if version < tonumber(ARGV[4]) then return {'older', version} end

local function kind_of(key) return string.match(key, '^{tb:%d+}:(%a):') end

local function of_kind(key, kind) return (string.gsub(key, '}:h:', '}:' .. kind .. ':', 1)) end

local function add(set, members)
  for low = 1, #members, CHUNK do
    redis.call('SADD', set, unpack(members, low, math.min(low + CHUNK - 1, #members)))
  end
end

local function give_back()
  for _, key in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    if kind_of(key) == 'h' then
      local dirty, in_flight = of_kind(key, 'y'), of_kind(key, 'Y')
      if redis.call('EXISTS', in_flight) == 1 then
        redis.call('SUNIONSTORE', dirty, dirty, in_flight)
        redis.call('UNLINK', in_flight)
      end
    end
  end
  redis.call('SUNIONSTORE', KEYS[1], KEYS[1], KEYS[2])
  redis.call('UNLINK', KEYS[2])
end

-- The first command is one that a full Redis allows, and what follows it in a script is allowed too:
-- a full Redis can still be checkpointed.
redis.call('SREM', KEYS[1], '')
if ARGV[5] == 'first' then
  if redis.call('EXISTS', KEYS[2]) == 1 then give_back() end
  redis.call('SET', KEYS[3], ARGV[1])
elseif redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return {'taken'}
end

local taken = redis.call('SPOP', KEYS[1], ARGV[2])
add(KEYS[2], taken)
local counters, tokens, windows = {}, {}, {}
for _, key in ipairs(taken) do
  local kind = kind_of(key)
  if kind == 'h' then
    windows[#windows + 1] = key
  elseif kind == 'c' or kind == 'w' then
    counters[#counters + 1] = key
  else
    tokens[#tokens + 1] = key
  end
end

local values = {}
for low = 1, #counters, CHUNK do
  local high = math.min(low + CHUNK - 1, #counters)
  local held = redis.call('MGET', unpack(counters, low, high))
  for i = low, high do values[i] = held[i - low + 1] end
end

local held_tokens = {}
for _, key in ipairs(tokens) do
  local left = redis.call('PTTL', key)
  if left > 0 then
    local ring = kind_of(key) == 'p' or kind_of(key) == 'P'
    local held = ring and redis.call('HGETALL', key) or { redis.call('GET', key) }
    held_tokens[#held_tokens + 1] = { key, left, ring and 'h' or 's', unpack(held) }
  end
end

-- Windows take no room, their members do: however many windows there are, some are copied.
local room = tonumber(ARGV[2]) - #counters - #tokens

-- Moves as many changed members as there is room for; what is left keeps the window dirty.
local function take_members(key)
  local dirty, fresh = of_kind(key, 'y'), {}
  if room > 0 then
    fresh = redis.call('SPOP', dirty, room)
    add(of_kind(key, 'Y'), fresh)
    room = room - #fresh
  end
  if redis.call('EXISTS', dirty) == 1 then redis.call('SADD', KEYS[1], key) end
  return fresh
end

local entries = {}
for _, key in ipairs(windows) do
  local members, records = take_members(key), {}
  for low = 1, #members, CHUNK do
    local high = math.min(low + CHUNK - 1, #members)
    local held = redis.call('HMGET', key, unpack(members, low, high))
    for i = low, high do records[i] = held[i - low + 1] end
  end
  -- A window that has ended its time, or was dropped, says nothing about its entries.
  if redis.call('HEXISTS', key, '') == 1 then entries[#entries + 1] = {key, members, records} end
end

local left, entries_left = redis.call('SCARD', KEYS[1]), -1
if left <= COUNTABLE then
  entries_left = 0
  for _, key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if kind_of(key) == 'h' then
      entries_left = entries_left + redis.call('SCARD', of_kind(key, 'y'))
    end
  end
end

local rows = {}
if left == 0 then
  -- Each cut has a number of its own, that comes with it: a Redis with that number has all of it.
  version = version + 1
  redis.call('SET', KEYS[5], version)
  rows = redis.call('SMEMBERS', KEYS[6])
end
return {'ok', version, left, entries_left, counters, values, entries, held_tokens, rows}
