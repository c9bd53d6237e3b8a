-- Takes back the mark of a member that is gone, once Postgres knows.
-- KEYS: entries, dirty members, members in flight    ARGV: member

if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
return redis.call('SREM', KEYS[2], ARGV[1]) + redis.call('SREM', KEYS[3], ARGV[1])
