-- Builds the index of a window's distinct scores, a step a call, and keeps it for whoever asks for
-- dense ranks. While its state is there, every write keeps it up (see submit.lua), so a step need
-- only walk on from where the last one ended.
--
-- KEYS: incarnation, ranking, entries, distinct scores, state
-- ARGV: incarnation expected, seconds to keep it, most entries a step
-- Answers: {"fenced", found}, {"done"} or {"more"}.

local incarnation = redis.call('GET', KEYS[1])
if incarnation ~= ARGV[1] then return { 'fenced', incarnation or '' } end

local RANKING, DISTINCT, STATE = KEYS[2], KEYS[4], KEYS[5]
local state = redis.call('GET', STATE)

local function keep(value)
  redis.call('SET', STATE, value, 'EX', ARGV[2])
  -- The index outlives its state: one that ended first would be taken for an empty one.
  redis.call('EXPIRE', DISTINCT, 2 * ARGV[2])
end

if state == 'done' then
  keep('done')
  return { 'done' }
end
if not state then redis.call('UNLINK', DISTINCT) end

local from = state and '(' .. state or '-inf'
local found =
  redis.call('ZRANGEBYSCORE', RANKING, from, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
local scores, last = {}, state
for i = 2, #found, 2 do
  if found[i] ~= last then
    last = found[i]
    scores[#scores + 1] = last
    scores[#scores + 1] = string.format('%.17g', tonumber(last))
  end
end
if #scores > 0 then redis.call('ZADD', DISTINCT, unpack(scores)) end
if #found == 0 then
  keep('done')
  return { 'done' }
end
keep(last)
return { 'more' }
