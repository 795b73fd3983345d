-- job, seconds: records that the job may have objects in storage. It is checked after at most so
-- many seconds.
redis.call('ZADD', OBJECTS, 'LT', text(now() + tonumber(ARGV[2])), ARGV[1])
