-- Reads the entries of members. ARGV continues: members.
-- Answers: incarnation, meta, size, {record or nil...}, {rank (0: none)...}, {position...};
--          incarnation, "unbuilt".

local incarnation = redis.call('GET', KEYS[1])
if is_unbuilt() then return { incarnation, 'unbuilt' } end

local CHUNK = 4000
local records, ranks, positions = {}, {}, {}
for low = 4, #ARGV, CHUNK do
  local high = math.min(low + CHUNK - 1, #ARGV)
  local found = redis.call('HMGET', KEYS[3], unpack(ARGV, low, high))
  for i = low, high do
    local record, at = found[i - low + 1], 0
    records[i - 3], ranks[i - 3], positions[i - 3] = record, 0, 0
    if record then
      at = position(element(record, ARGV[i]))
      local score = method ~= 'o' and string.format('%.17g', struct.unpack('>d', record, 9))
      ranks[i - 3], positions[i - 3] = rank_of(score, at), at
    end
  end
end

local meta = redis.call('HGET', KEYS[3], '')
return { incarnation, meta, redis.call('ZCARD', RANKING), records, ranks, positions }
