-- Finds where scores and elements would be in a ranking. ARGV continues: score, element, ...
-- Answers: incarnation, size, {entries before each...}, {entries with a better score than each...}.

local before, better = {}, {}
for i = 4, #ARGV, 2 do
  before[#before + 1] = before_element(ARGV[i], ARGV[i + 1])
  better[#better + 1] = count_better(RANKING, ARGV[i])
end
return { redis.call('GET', KEYS[1]), redis.call('ZCARD', RANKING), before, better }
