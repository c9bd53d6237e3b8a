-- The frame of every script that writes: fence, tokens, all or nothing.
--
-- It is put behind a file that defines `operation`, a table of two functions:
--   check(first, before)   -> indexes (from 1) of operations that can't be applied
--   write(first, before)   -> nil, or values to answer
-- where KEYS[first..] are the operations' keys and ARGV[before + i] belongs to KEYS[i].
--
-- KEYS: incarnation, dirty set, link ring, one key a token, one key an operation
-- ARGV: incarnation expected, link sequence, link ring's size, link ring's TTL s, number of
--       tokens, then three a token, then one an operation
--   a producer's token: "p", sequence, TTL s   (key: ring of the producer)
--   a request's token:  "r", "", TTL s         (key: the request's own)
-- Answers: {"ok", values...}; {"fenced", incarnation found or ""};
--          {"seen", i...} tokens (from 1) applied before; {"old", i...} tokens too old to tell
--          (0 is the link's); {"refused", i...} operations (from 1) that can't be applied.

local PRODUCER_RING = 256

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return {'fenced', incarnation or ''} end

local function look(ring, sequence, size)
  local slot = sequence % size
  local found = tonumber(redis.call('HGET', ring, slot) or '0')
  if found == sequence then return slot, 'seen' end
  if found > sequence then return slot, 'old' end
  return slot, 'new'
end

-- A token that was seen is written again: a WAIT or WAITAOF that follows on this connection
-- then covers the first write too.
local link_sequence, link_size = tonumber(ARGV[2]), tonumber(ARGV[3])
local link_slot, link_state = look(KEYS[3], link_sequence, link_size)
if link_state == 'seen' then
  redis.call('HSET', KEYS[3], link_slot, ARGV[2])
  return {'ok'}
end
if link_state == 'old' then return {'old', 0} end

local tokens = tonumber(ARGV[5])
local seen, old, slots = {}, {}, {}
for i = 1, tokens do
  local key, at = KEYS[3 + i], 3 + 3 * i
  if ARGV[at] == 'p' then
    local slot, state = look(key, tonumber(ARGV[at + 1]), PRODUCER_RING)
    slots[i] = slot
    if state == 'seen' then
      redis.call('HSET', key, slot, ARGV[at + 1])
      seen[#seen + 1] = i
    elseif state == 'old' then
      old[#old + 1] = i
    end
  elseif redis.call('EXISTS', key) == 1 then
    redis.call('SET', key, '', 'EX', ARGV[at + 2])
    seen[#seen + 1] = i
  end
end
if #old > 0 then return {'old', unpack(old)} end
if #seen > 0 then return {'seen', unpack(seen)} end

local first = 4 + tokens
local before = 6 + 3 * tokens - first
local refused = operation.check(first, before)
if #refused > 0 then return {'refused', unpack(refused)} end
local answer = operation.write(first, before)

for i = 1, tokens do
  local key, at = KEYS[3 + i], 3 + 3 * i
  if ARGV[at] == 'p' then
    local added = redis.call('HSET', key, slots[i], ARGV[at + 1])
    if added == 1 or slots[i] % 64 == 0 then redis.call('EXPIRE', key, ARGV[at + 2]) end
  else
    redis.call('SET', key, '', 'EX', ARGV[at + 2])
  end
end
local added = redis.call('HSET', KEYS[3], link_slot, ARGV[2])
if added == 1 or link_slot == 0 then redis.call('EXPIRE', KEYS[3], ARGV[4]) end
return {'ok', unpack(answer or {})}
