-- What scripts that read a ranking share. It is put before a file that uses it.
--
-- KEYS: incarnation, ranking, entries, distinct scores, state of the distinct scores
-- ARGV: sort ("d" or "a"), tie break ("e" or "m"), rank method ("o", "c" or "d"), ...
-- Positions count from 0, the best entry first.

local descending, earliest, method = ARGV[1] == 'd', ARGV[2] == 'e', ARGV[3]
local RANKING = KEYS[2]

local function element(record, member)
  if earliest then return string.sub(record, 1, 8) .. member end
  return member
end

local function member_of(found)
  if earliest then return string.sub(found, 9) end
  return found
end

local function position(found)
  return redis.call(descending and 'ZREVRANK' or 'ZRANK', RANKING, found)
end

local function range(start, stop, ...)
  return redis.call(descending and 'ZREVRANGE' or 'ZRANGE', RANKING, start, stop, ...)
end

-- How many scores of a sorted set rank strictly better.
local function count_better(key, score)
  if descending then return redis.call('ZCOUNT', key, '(' .. score, '+inf') end
  return redis.call('ZCOUNT', key, '-inf', '(' .. score)
end

-- The rank of an entry by the method asked for.
local function rank_of(score, at)
  if method == 'c' then return count_better(RANKING, score) + 1 end
  if method == 'd' then return count_better(KEYS[4], score) + 1 end
  return at + 1
end

-- Dense ranks need the index of distinct scores; whoever asks builds it first (see distinct.lua).
local function is_unbuilt()
  return method == 'd' and redis.call('GET', KEYS[5]) ~= 'done'
end

-- Whether a ranks before b, which have the same score: by bytes, for Lua compares by locale.
local function ranks_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      if descending then return x > y end
      return x < y
    end
  end
  if descending then return #a > #b end
  return #a < #b
end

-- How many entries rank before an element with a score, by binary search among equal scores; and 1
-- if it is there.
local function before_element(score, found)
  local held = redis.call('ZSCORE', RANKING, found)
  if held and tonumber(held) == tonumber(score) then return position(found), 1 end
  local low = count_better(RANKING, score)
  local high = low + redis.call('ZCOUNT', RANKING, score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if ranks_before(range(middle, middle)[1], found) then low = middle + 1 else high = middle end
  end
  return low, 0
end
