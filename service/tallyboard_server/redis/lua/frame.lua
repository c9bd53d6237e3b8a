-- The frame of every script that writes: fence, tokens, all or nothing.
--
-- It is put behind a file that defines `operation`, a table of two functions:
--   check(first, before)   -> indexes (from 1) of operations that can't be applied
--   write(first, before)   -> nil, or values to answer
-- where KEYS[first..] are the operations' keys and ARGV[before + i] belongs to KEYS[i].
--
-- An operation with `remembers_refusal` remembers its tokens also when it is refused, with the
-- note "\n".
--
-- KEYS: incarnation, dirty set, link ring, journaled, one key a token, one key an operation
-- ARGV: incarnation expected, link sequence, link ring's size, link ring's TTL s, number of the row
--       in the journal ("": none), "k" if tokens are part of checkpoints, number of tokens, then
--       three a token, then one an operation
--   a producer's token: "p", sequence and note, TTL s   (key: ring of the producer)
--   a request's token:  "r", note, TTL s                (key: the request's own)
--   The note is kept with the token and told to whoever repeats it.
-- Answers: {"ok", values...}; {"fenced", incarnation found or ""};
--          {"seen", i, note...} tokens (from 1) applied before; {"old", i, slot...} tokens too old
--          for their ring, and what it holds in their place; {"old", 0}: the link's is;
--          {"refused", i...} operations (from 1) that can't be applied.
--
-- A slot of a producer's ring is read by redis/rings.py: "newest", then up to two gaps
-- "<before>after", the newest first, then "?" if there were more, then the note.

local PRODUCER_RING = 256

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return {'fenced', incarnation or ''} end

-- Where a sequence belongs in a ring, what the ring says of it, and what it holds there.
local function look(ring, sequence, size)
  local slot = sequence % size
  local held = redis.call('HGET', ring, slot) or '0'
  local found = tonumber(string.match(held, '^%d+'))
  if found == sequence then return slot, 'seen', held end
  if found > sequence then return slot, 'old', held end
  return slot, 'new', held
end

-- A token that was seen is written again: a WAIT or WAITAOF that follows on this connection
-- then covers the first write too.
local link_sequence, link_size = tonumber(ARGV[2]), tonumber(ARGV[3])
local link_slot, link_state = look(KEYS[3], link_sequence, link_size)
local row, keeps_tokens = ARGV[5], ARGV[6] == 'k'
if row ~= '' and redis.call('SISMEMBER', KEYS[4], row) == 1 then return {'ok'} end
if link_state == 'seen' then
  redis.call('HSET', KEYS[3], link_slot, ARGV[2])
  -- It was applied before it was journaled.
  if row ~= '' then redis.call('SADD', KEYS[4], row) end
  return {'ok'}
end
if link_state == 'old' then return {'old', 0} end

-- The newest sequence of a slot, and its gaps, when it goes on to this one.
local function go_on(held, sequence)
  local newest, gaps, more = string.match(held, '^(%d+)([<>%d]*)(%??)')
  if tonumber(sequence) - tonumber(newest) > PRODUCER_RING then
    local last = string.match(gaps, '^<%d+>%d+')
    if last and #last < #gaps then more = '?' end
    gaps = '<' .. newest .. '>' .. sequence .. (last or '')
  end
  return sequence .. gaps .. more
end

local tokens = tonumber(ARGV[7])
local seen, old, slots, went_on = {}, {}, {}, {}
local function note_seen(i, note)
  seen[#seen + 1] = i
  seen[#seen + 1] = note
end

for i = 1, tokens do
  local key, at = KEYS[4 + i], 5 + 3 * i
  if ARGV[at] == 'p' then
    local sequence = string.match(ARGV[at + 1], '^%d+')
    local slot, state, held = look(key, tonumber(sequence), PRODUCER_RING)
    slots[i] = slot
    if state == 'seen' then
      redis.call('HSET', key, slot, held)
      note_seen(i, string.match(held, '\n.*$') or '')
    elseif state == 'old' then
      old[#old + 1] = i
      old[#old + 1] = held
    else
      went_on[i] = go_on(held, sequence) .. string.sub(ARGV[at + 1], #sequence + 1)
    end
  else
    local held = redis.call('GET', key)
    if held then
      redis.call('SET', key, held, 'EX', ARGV[at + 2])
      note_seen(i, held)
    end
  end
end
if #old > 0 then return {'old', unpack(old)} end
if #seen > 0 then return {'seen', unpack(seen)} end

-- A ring in use lives on: its time is set anew when half of it is over.
local function keep(ring, ttl)
  if redis.call('TTL', ring) < tonumber(ttl) / 2 then redis.call('EXPIRE', ring, ttl) end
end

local function remember(note)
  for i = 1, tokens do
    local key, at = KEYS[4 + i], 5 + 3 * i
    if ARGV[at] == 'p' then
      redis.call('HSET', key, slots[i], went_on[i] .. note)
      keep(key, ARGV[at + 2])
    else
      redis.call('SET', key, ARGV[at + 1] .. note, 'EX', ARGV[at + 2])
    end
    if keeps_tokens then redis.call('SADD', KEYS[2], key) end
  end
end

local first = 5 + tokens
local before = 8 + 3 * tokens - first
local refused = operation.check(first, before)
if #refused > 0 then
  if operation.remembers_refusal then remember('\n') end
  return {'refused', unpack(refused)}
end
local answer = operation.write(first, before)
remember('')
redis.call('HSET', KEYS[3], link_slot, ARGV[2])
keep(KEYS[3], ARGV[4])
if row ~= '' then redis.call('SADD', KEYS[4], row) end
return {'ok', unpack(answer or {})}
