-- Reads a stretch of a ranking. ARGV continues: anchor, its score, its element, entries before it,
-- entries from it on, least score, greatest score ("-inf" and "+inf": no bounds).
--
-- Anchors, each a place between two entries: "i" (the score is a position), "e" (the end), "m"
-- (before the member that the element names), "b" and "a" (before or after the element with this
-- score, whether or not it is there), "u" (before all entries with this score), "s" (after them).
-- Answers: incarnation, meta, size, entries within the bounds, position of the anchor, position
--          of the first entry, rank of the anchor, {element, score...}, {record...}, {rank...};
--          incarnation, "unbuilt"; incarnation, "missing" (no such member), size.
-- Position and rank of the anchor are those of the entry that is, or would be, behind it.

local incarnation = redis.call('GET', KEYS[1])
if is_unbuilt() then return { incarnation, 'unbuilt' } end

local anchor, score, found = ARGV[4], ARGV[5], ARGV[6]
local ahead, count = tonumber(ARGV[7]), tonumber(ARGV[8])
local least, greatest = ARGV[9], ARGV[10]
local size = redis.call('ZCARD', RANKING)

local function place()
  if anchor == 'i' then return math.min(tonumber(score), size) end
  if anchor == 'e' then return size end
  if anchor == 's' then
    return count_better(RANKING, score) + redis.call('ZCOUNT', RANKING, score, score)
  end
  if anchor == 'm' then
    local record = redis.call('HGET', KEYS[3], found)
    if not record then return nil end
    score = string.format('%.17g', struct.unpack('>d', record, 9))
    return position(element(record, found))
  end
  if anchor == 'u' then return count_better(RANKING, score) end
  local at, present = before_element(score, found)
  return anchor == 'a' and at + present or at
end

local at = place()
if not at then return { incarnation, 'missing', size } end

local first, last, within = 0, size, size
if least ~= '-inf' or greatest ~= '+inf' then
  within = redis.call('ZCOUNT', RANKING, least, greatest)
  local best = descending and greatest or least
  first = (best == '+inf' or best == '-inf') and 0 or count_better(RANKING, best)
  last = first + within
end
local start = math.max(at - ahead, first)
local stop = math.min(at + count, last)

local elements, records, ranks = {}, {}, {}
if stop > start then
  elements = range(start, stop - 1, 'WITHSCORES')
  local members = {}
  for i = 1, #elements, 2 do members[#members + 1] = member_of(elements[i]) end
  records = redis.call('HMGET', KEYS[3], unpack(members))
end
for i = 1, #elements / 2 do
  local held = elements[2 * i]
  if method == 'o' then
    ranks[i] = start + i
  elseif i == 1 then
    ranks[i] = rank_of(held)
  elseif held == elements[2 * i - 2] then
    ranks[i] = ranks[i - 1]
  else
    ranks[i] = method == 'c' and start + i or ranks[i - 1] + 1
  end
end

local rank = at + 1
if method ~= 'o' and (anchor == 'm' or anchor == 's' or anchor == 'u') then rank = rank_of(score) end
local meta = redis.call('HGET', KEYS[3], '')
return { incarnation, meta, size, within, at, start, rank, elements, records, ranks }
