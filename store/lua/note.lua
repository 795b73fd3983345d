-- job, due: it may have objects in storage, and is to be looked at after so many seconds at the latest
redis.call('ZADD', OBJECTS, 'LT', text(now() + tonumber(ARGV[2])), ARGV[1])
