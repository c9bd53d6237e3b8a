-- Takes counter keys for a checkpoint: what an earlier checkpoint took and never finished, and as
-- many dirty ones as there is room for, under a new checkpoint id. Answers what the keys hold.
--
-- KEYS: dirty set, in-flight set, checkpoint id, incarnation
-- ARGV: id of this checkpoint, most keys to hold in flight, incarnation expected
-- Answers: {"fenced", incarnation found or ""};
--          {"ok", dirty keys left, {key...}, {value or nil...}}.
-- The counter keys can't be passed as KEYS, for nobody knows them before; they carry the hash tag
-- of the sets that they are members of, so they are on the same node.

local CHUNK = 2000 -- unpack() takes fewer than 8,000 values

local incarnation = redis.call('GET', KEYS[4])
if incarnation ~= ARGV[3] then return {'fenced', incarnation or ''} end

local room = tonumber(ARGV[2]) - redis.call('SCARD', KEYS[2])
if room > 0 then
  -- SPOP is allowed when Redis is full, and what follows a script's first write is as well: a
  -- full Redis can still be checkpointed.
  local fresh = redis.call('SPOP', KEYS[1], room)
  for low = 1, #fresh, CHUNK do
    redis.call('SADD', KEYS[2], unpack(fresh, low, math.min(low + CHUNK - 1, #fresh)))
  end
end

local keys, values = redis.call('SMEMBERS', KEYS[2]), {}
if #keys > 0 then redis.call('SET', KEYS[3], ARGV[1]) end
for low = 1, #keys, CHUNK do
  local high = math.min(low + CHUNK - 1, #keys)
  local held = redis.call('MGET', unpack(keys, low, high))
  for i = low, high do values[i] = held[i - low + 1] end
end

return {'ok', redis.call('SCARD', KEYS[1]), keys, values}
