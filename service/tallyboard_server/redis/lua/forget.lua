-- Takes back the mark of a member that is gone, once Postgres knows. One that came back meanwhile is
-- marked anew: Postgres may have lost it.
-- KEYS: entries, dirty members, members in flight, dirty set    ARGV: member

if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('SADD', KEYS[4], KEYS[1])
  return 0
end
return redis.call('SREM', KEYS[2], ARGV[1]) + redis.call('SREM', KEYS[3], ARGV[1])
