-- Adds one delta to a wide counter ("x": deleted, counts as absent). INCRBY checks 64 bits.

local operation = { remembers_refusal = true }

function operation.check(first, before)
  if redis.call('GET', KEYS[first]) == 'x' then
    redis.call('SET', KEYS[first], ARGV[before + first])
    return {}
  end
  local sum = redis.pcall('INCRBY', KEYS[first], ARGV[before + first])
  if type(sum) ~= 'table' or not sum.err then return {} end
  if string.find(sum.err, 'overflow', 1, true) then return {1} end
  error(sum.err)
end

function operation.write(first)
  redis.call('SADD', KEYS[2], KEYS[first])
end
