-- Submits scores: one or several groups, each for one board and one set of its windows.
--
-- KEYS, a group: fence, windows here; and for each of its windows: ranking (sorted set), entries
--   (hash), dirty members, distinct scores, state of the distinct scores
-- ARGV: number of groups; a group: revision, sort ("d" or "a"), tie break ("e" or "m"), policy
--   ("B", "L", "S"), answer ("", "s": scores, "r": ranks too), most entries (0: no limit), number
--   of windows; a window: id, seconds to live ("": for good), "o" (open), "l" (late: it has to be
--   there, and open), "i" (import: it has to be there) or "n" (import: it may be new); number of
--   items n, moments (8 bytes each), scores (8 bytes each), number of metadata (0 or n); n members;
--   the metadata
-- Answers for each group and window, if asked: 25 or 41 bytes an item: "n" (no entry before) or
--   "e", moment before, scores before and now (doubles; NaN: no entry), ranks before and now (8
--   bytes each, 0: none).
-- Refusals: "group:code" or "group:code:item", code being "r" (other revision), "c:window" (closed),
--   "a:window" (archived: to be loaded first), "s:item" (the sum is not finite).
--
-- A moment is 8 bytes, big-endian, biased to be positive, and inverted on descending boards, so
-- that with equal scores the earlier one ranks higher. A record is a moment, a score (a double,
-- big-endian) and metadata. The meta of a window, in the entries' field "", is "o" (open) or "c"
-- (closed) and the sum of all scores times 2^-32, as two doubles whose sum it is.

local CHUNK = 2000 -- unpack() takes fewer than 8,000 values
local NOT_A_NUMBER = struct.pack('>d', 0 / 0)
local NOTHING = struct.pack('>I8', 0) .. NOT_A_NUMBER
local EIGHT = '>dddddddd'
local sub, unpack_struct = string.sub, struct.unpack
local operation, groups, windows = {}, {}, {}

-- The doubles that a string of n times 8 bytes holds.
local function doubles(bytes, n)
  local values, i = {}, 1
  while i + 7 <= n do
    values[i], values[i + 1], values[i + 2], values[i + 3], values[i + 4], values[i + 5],
      values[i + 6], values[i + 7] = unpack_struct(EIGHT, bytes, 8 * i - 7)
    i = i + 8
  end
  for j = i, n do values[j] = unpack_struct('>d', bytes, 8 * j - 7) end
  return values
end

-- The window of these keys: groups of one call may share it.
local function window_at(key, at)
  local entries = KEYS[key + 1]
  local window = windows[entries]
  if not window then
    window = {
      ranking = KEYS[key], entries = entries, dirty = KEYS[key + 2], distinct = KEYS[key + 3],
      distinct_state = KEYS[key + 4], id = ARGV[at], ttl = ARGV[at + 1], chunks = {},
    }
    windows[entries] = window
    windows[#windows + 1] = window
  end
  return window
end

local function read_windows(group, key, at)
  for w = 1, tonumber(ARGV[at - 1]) do
    group.windows[w], group.modes[w] = window_at(key, at), ARGV[at + 2]
    group.old[w], group.new[w], group.ranks[w] = {}, {}, {}
    key, at = key + 5, at + 3
  end
  return key, at
end

local function read_group(key, at)
  local group = {
    fence = KEYS[key], here = KEYS[key + 1], revision = ARGV[at], windows = {}, modes = {},
    descending = ARGV[at + 1] == 'd', earliest = ARGV[at + 2] == 'e', policy = ARGV[at + 3],
    answer = ARGV[at + 4], most = tonumber(ARGV[at + 5]), old = {}, new = {}, ranks = {},
  }
  key, at = read_windows(group, key + 2, at + 7)
  local n, metadata = tonumber(ARGV[at]), tonumber(ARGV[at + 3])
  group.n, group.moments, group.bytes, group.members = n, ARGV[at + 1], ARGV[at + 2], at + 3
  group.metadata = metadata > 0 and at + 3 + n
  group.scores = doubles(group.bytes, n)
  return group, key, at + 4 + n + metadata
end

-- Reads the window's meta, once; gives what can be said against writing to it.
local function look(window, mode)
  if not window.meta then
    local meta = redis.call('HGET', window.entries, '')
    window.is_new = not meta
    window.pending = {}
    if meta then
      window.meta, window.high, window.low = sub(meta, 1, 1), unpack_struct('>dd', meta, 2)
    else
      window.meta, window.high, window.low = 'o', 0, 0
    end
  end
  if window.meta == 'c' and (mode == 'o' or mode == 'l') then return 'c:' .. window.id end
  if window.is_new and (mode == 'i' or mode == 'l') then return 'a:' .. window.id end
end

local function add_to_sum(window, score)
  window.high, window.low = added(window.high, window.low, score)
end

local function is_earlier(group, moment, other)
  local a, b = unpack_struct('>I8', moment), unpack_struct('>I8', other)
  if group.descending then return a > b end
  return a < b
end

-- Whether a score takes the place of a record's, which is `before`.
local function wins(group, i, score, record, before)
  if group.policy == 'B' and score ~= before then
    if group.descending then return score > before end
    return score < before
  end
  local moment, held = sub(group.moments, 8 * i - 7, 8 * i), sub(record, 1, 8)
  if group.policy == 'B' then return is_earlier(group, moment, held) end
  return not is_earlier(group, moment, held)
end

local function element(group, moment, member)
  if group.earliest then return moment .. member end
  return member
end

-- Puts down what a changed entry needs: `header` is the new record's moment and score.
local function change(group, window, chunk, member, record, header, score, metadata)
  local at, moment = #chunk.zadd, sub(header, 1, 8)
  chunk.zadd[at + 1], chunk.zadd[at + 2] = score, element(group, moment, member)
  chunk.hset[at + 1], chunk.hset[at + 2] = member, header .. metadata
  chunk.changed[#chunk.changed + 1] = member
  if #groups > 1 then window.pending[member] = header .. metadata end
  if not record then return add_to_sum(window, score) end
  local held, before = sub(record, 1, 8), unpack_struct('>d', record, 9)
  if group.earliest and held ~= moment then
    chunk.zrem[#chunk.zrem + 1] = held .. member
  end
  chunk.replaced[#chunk.replaced + 1] = before
  add_to_sum(window, -before)
  add_to_sum(window, score)
end

-- Works out what the items of a chunk do to a window; puts down those that can't be applied.
local function plan_chunk(group, w, low, high, refusals)
  local from, metadata, is_sum = group.members, group.metadata, group.policy == 'S'
  local window, old, new = group.windows[w], group.old[w], group.new[w]
  local records = redis.call('HMGET', window.entries, unpack(ARGV, from + low, from + high))
  local chunk = { zrem = {}, zadd = {}, hset = {}, changed = {}, replaced = {} }
  for i = low, high do
    local record, score = records[i - low + 1], group.scores[i]
    if #groups > 1 then record = window.pending[ARGV[from + i]] or record end
    local before = record and unpack_struct('>d', record, 9)
    local total = is_sum and record and before + score or score
    if total - total ~= 0 then
      refusals[#refusals + 1] = 's:' .. i
    elseif not record or is_sum or wins(group, i, score, record, before) then
      local moment, kept = sub(group.moments, 8 * i - 7, 8 * i), metadata and ARGV[metadata + i] or ''
      local bytes = sub(group.bytes, 8 * i - 7, 8 * i)
      if is_sum and record then
        bytes = struct.pack('>d', total)
        if not wins(group, i, score, record, before) then
          moment, kept = sub(record, 1, 8), sub(record, 17)
        end
      end
      new[i] = moment .. bytes
      change(group, window, chunk, ARGV[from + i], record, new[i], total, kept)
    end
    old[i] = record
  end
  window.chunks[#window.chunks + 1] = chunk
end

local function rank(group, window, member, record)
  if not record then return 0 end
  local command = group.descending and 'ZREVRANK' or 'ZRANK'
  local found = redis.call(command, window.ranking, element(group, sub(record, 1, 8), member))
  return found and found + 1 or 0
end

local function plan_window(group, w, refusals)
  for low = 1, group.n, CHUNK do
    plan_chunk(group, w, low, math.min(low + CHUNK - 1, group.n), refusals)
  end
  if group.answer == 'r' then
    for i = 1, group.n do
      local member, record = ARGV[group.members + i], group.old[w][i]
      group.ranks[w][i] = rank(group, group.windows[w], member, record)
    end
  end
end

local function plan_group(group)
  if (redis.call('GET', group.fence) or '') ~= group.revision then return { 'r' } end
  local refusals = {}
  for w, window in ipairs(group.windows) do
    refusals[#refusals + 1] = look(window, group.modes[w])
    if #refusals == 0 then plan_window(group, w, refusals) end
  end
  return refusals
end

function operation.check(first, before)
  local refused, key, at = {}, first, before + first + 1
  for g = 1, tonumber(ARGV[at - 1]) do
    groups[g], key, at = read_group(key, at)
  end
  for g, group in ipairs(groups) do
    for _, refusal in ipairs(plan_group(group)) do
      -- The others come again, and are refused then: unpack() takes fewer than 8,000 values.
      if #refused < CHUNK then refused[#refused + 1] = g .. ':' .. refusal end
    end
  end
  return refused
end

-- Keeps the index of distinct scores, which is there only while somebody asks for dense ranks.
local function keep_distinct(window, removed, added)
  if redis.call('EXISTS', window.distinct_state) == 0 then return end
  for _, score in ipairs(removed) do
    if redis.call('ZCOUNT', window.ranking, score, score) == 0 then
      redis.call('ZREM', window.distinct, string.format('%.17g', score))
    end
  end
  for i = 1, #added, 2 do
    redis.call('ZADD', window.distinct, added[i], string.format('%.17g', added[i]))
  end
  if redis.call('TTL', window.distinct) == -1 then
    redis.call('EXPIRE', window.distinct, 2 * redis.call('TTL', window.distinct_state))
  end
end

local function write_chunk(window, chunk)
  if #chunk.zrem > 0 then redis.call('ZREM', window.ranking, unpack(chunk.zrem)) end
  if #chunk.zadd > 0 then
    redis.call('ZADD', window.ranking, unpack(chunk.zadd))
    redis.call('HSET', window.entries, unpack(chunk.hset))
    redis.call('SADD', window.dirty, unpack(chunk.changed))
    keep_distinct(window, chunk.replaced, chunk.zadd)
    window.is_changed = true
  end
end

-- Drops the worst entries above the limit.
local function trim(group, window)
  if group.most == 0 then return end
  local excess = redis.call('ZCARD', window.ranking) - group.most
  if excess <= 0 then return end
  local pop = group.descending and 'ZPOPMIN' or 'ZPOPMAX'
  local popped = redis.call(pop, window.ranking, math.min(excess, CHUNK))
  local members, scores = {}, {}
  for i = 1, #popped, 2 do
    local member = group.earliest and sub(popped[i], 9) or popped[i]
    local score = unpack_struct('>d', redis.call('HGET', window.entries, member), 9)
    members[#members + 1], scores[#scores + 1] = member, score
    window.dropped[member] = true
    add_to_sum(window, -score)
  end
  redis.call('HDEL', window.entries, unpack(members))
  redis.call('SADD', window.dirty, unpack(members))
  keep_distinct(window, scores, {})
end

local function answer_of(group, w)
  local parts, window, old, new = {}, group.windows[w], group.old[w], group.new[w]
  for i = 1, group.n do
    local member, held = ARGV[group.members + i], new[i] or old[i]
    if held and window.dropped[member] then held = nil end
    parts[#parts + 1] = (old[i] and 'e' or 'n')
      .. (old[i] and sub(old[i], 1, 16) or NOTHING)
      .. (held and sub(held, 9, 16) or NOT_A_NUMBER)
    if group.answer == 'r' then
      parts[#parts + 1] = struct.pack('>I8I8', group.ranks[w][i], rank(group, window, member, held))
    end
  end
  return table.concat(parts)
end

-- Gives a new window its time, one moment for all its keys. One that was archived ends by itself:
-- not before it is archived again.
local function keep_time(window)
  local keys = { window.ranking, window.entries, window.dirty }
  if window.meta == 'c' then
    for _, key in ipairs(keys) do redis.call('PERSIST', key) end
  end
  if window.ttl == '' then return end
  local at
  for _, key in ipairs(keys) do
    if redis.call('TTL', key) == -1 then
      at = at or redis.call('TIME')[1] + window.ttl
      redis.call('EXPIREAT', key, at)
    end
  end
end

local function write_window(group, window)
  for _, chunk in ipairs(window.chunks) do write_chunk(window, chunk) end
  window.chunks, window.dropped = {}, window.dropped or {}
  if not (window.is_changed or window.is_new) then return end
  trim(group, window)
  local meta = window.meta .. struct.pack('>dd', window.high, window.low)
  redis.call('HSET', window.entries, '', meta)
  redis.call('SADD', KEYS[2], window.entries)
  if window.is_new then redis.call('SADD', group.here, window.id) end
  keep_time(window)
end

function operation.write()
  local answers = {}
  for _, group in ipairs(groups) do
    for _, window in ipairs(group.windows) do write_window(group, window) end
  end
  for _, group in ipairs(groups) do
    if group.answer ~= '' then
      for w = 1, #group.windows do answers[#answers + 1] = answer_of(group, w) end
    end
  end
  return answers
end
