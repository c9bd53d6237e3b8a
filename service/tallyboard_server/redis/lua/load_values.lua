-- Sets strings of a partition that is being made anew; nothing gets dirty.
-- KEYS: incarnation, keys...    ARGV: mark expected in the incarnation's place, values...
-- Answers: {"fenced", found}, or {"ok"}.

local STEP = 1000 -- unpack() takes fewer than 8,000 values

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end
for low = 2, #KEYS, STEP do
  local pairs, n = {}, 0
  for i = low, math.min(low + STEP - 1, #KEYS) do
    pairs[n + 1], pairs[n + 2] = KEYS[i], ARGV[i]
    n = n + 2
  end
  redis.call('MSET', unpack(pairs))
end
return { 'ok' }
