-- Replaces what is in the place of a partition's incarnation, if it is what the caller has seen.
--
-- KEYS: incarnation, version
-- ARGV: incarnation or mark expected ("": none), version expected ("": any), incarnation or mark to
--   be from now on
-- Answers: {"ok"}, or {"other"}: it is something else by now.

local found, version = redis.call('GET', KEYS[1]) or '', redis.call('GET', KEYS[2]) or '0'
if found ~= ARGV[1] or (ARGV[2] ~= '' and version ~= ARGV[2]) then return { 'other' } end
-- A full Redis allows this one, and what follows it in a script is allowed too.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[3])
return { 'ok' }
