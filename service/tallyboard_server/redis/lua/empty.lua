-- Deletes keys of a partition that is being made anew.
-- KEYS: incarnation, keys...    ARGV: mark expected in the incarnation's place
-- Answers: {"fenced", found}, or {"ok"}.

local STEP = 2000 -- unpack() takes fewer than 8,000 values

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end
for low = 2, #KEYS, STEP do
  redis.call('UNLINK', unpack(KEYS, low, math.min(low + STEP - 1, #KEYS)))
end
return { 'ok' }
