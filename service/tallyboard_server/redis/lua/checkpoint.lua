-- Takes what has changed for a checkpoint: what an earlier checkpoint took and never finished, and
-- as much as there is room for, under a new checkpoint id. Answers what the keys hold.
--
-- KEYS: dirty set, in-flight set, checkpoint id, incarnation
-- ARGV: id of this checkpoint, most keys and entries to hold in flight, incarnation expected
-- Answers: {"fenced", incarnation found or ""};
--          {"ok", dirty keys left, changed entries left (-1: not counted), {key...},
--          {value or nil...}, {{entries' key, {member...}, {record or nil...}}...}}.
-- The dirty set holds keys of counters, and keys of windows' entries: which members of a window
-- have changed is in a set of its own. These keys can't be passed as KEYS, for nobody knows them
-- before; they carry the hash tag of the sets that they are members of, so they are on the same
-- node.

local CHUNK = 2000 -- unpack() takes fewer than 8,000 values
local COUNTABLE = 1000

local incarnation = redis.call('GET', KEYS[4])
if incarnation ~= ARGV[3] then return {'fenced', incarnation or ''} end

local function is_of_entries(key) return string.match(key, '^{tb:%d+}:h:') end

local function of_kind(key, kind) return (string.gsub(key, '}:h:', '}:' .. kind .. ':', 1)) end

local function add(set, members)
  for low = 1, #members, CHUNK do
    redis.call('SADD', set, unpack(members, low, math.min(low + CHUNK - 1, #members)))
  end
end

local room = tonumber(ARGV[2]) - redis.call('SCARD', KEYS[2])
if room > 0 then
  -- SPOP is allowed when Redis is full, and what follows a script's first write is as well: a
  -- full Redis can still be checkpointed.
  add(KEYS[2], redis.call('SPOP', KEYS[1], room))
end

local counters, windows = {}, {}
for _, key in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if is_of_entries(key) then windows[#windows + 1] = key else counters[#counters + 1] = key end
end
if #counters + #windows > 0 then redis.call('SET', KEYS[3], ARGV[1]) end

local values = {}
for low = 1, #counters, CHUNK do
  local high = math.min(low + CHUNK - 1, #counters)
  local held = redis.call('MGET', unpack(counters, low, high))
  for i = low, high do values[i] = held[i - low + 1] end
end

-- Windows take no room, their members do: however many windows there are, some are copied.
room = tonumber(ARGV[2]) - #counters
for _, key in ipairs(windows) do room = room - redis.call('SCARD', of_kind(key, 'Y')) end

-- Moves as many changed members as there is room for; what is left keeps the window dirty.
local function take_members(key)
  local dirty, in_flight = of_kind(key, 'y'), of_kind(key, 'Y')
  if room > 0 then
    local fresh = redis.call('SPOP', dirty, room)
    add(in_flight, fresh)
    room = room - #fresh
  end
  if redis.call('EXISTS', dirty) == 1 then redis.call('SADD', KEYS[1], key) end
  return redis.call('SMEMBERS', in_flight)
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
    if is_of_entries(key) then
      entries_left = entries_left + redis.call('SCARD', of_kind(key, 'y'))
    end
  end
end

return {'ok', left, entries_left, counters, values, entries}
