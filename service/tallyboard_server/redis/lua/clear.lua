-- Resets (to 0, if there) or deletes shards of counters ("reset", "delete") and wide counters
-- ("wide_reset", "wide_delete"; "x" is the mark of a deleted one). A frozen shard is refused: its
-- counter is wide. Answers how many of them were there.

local operation = {}

function operation.check(first, before)
  local refused = {}
  for i = first, #KEYS do
    local value = redis.call('GET', KEYS[i])
    if value and string.sub(value, 1, 1) == 'w' then refused[#refused + 1] = i - first + 1 end
  end
  return refused
end

function operation.write(first, before)
  local existed = 0
  for i = first, #KEYS do
    local kind, value = ARGV[before + i], redis.call('GET', KEYS[i])
    local is_there = value and value ~= 'x'
    if is_there then existed = existed + 1 end
    if kind == 'wide_delete' then
      -- Kept as a mark: the frozen shards must never be added up a second time.
      redis.call('SET', KEYS[i], 'x')
    elseif kind == 'delete' then
      redis.call('DEL', KEYS[i])
    elseif is_there then
      redis.call('SET', KEYS[i], '0')
    end
    redis.call('SADD', KEYS[2], KEYS[i])
  end
  return {existed}
end
