-- queue, part, ttl, reason. The hash may hold anything, so nothing in it is trusted.
local queue, part, ttl, reason = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local job, index = split(part)
redis.call('ZREM', CLAIMS .. queue, part)
redis.call('LREM', intermediate(queue), 0, part)
if redis.call('TYPE', PART .. part).ok == 'hash' then
  redis.call('HSET', PART .. part, 'status', 'failed', 'exc_info', reason)
  redis.call('ZADD', FAILED .. queue, text(now() + ttl), part)
end
redis.call('EXPIRE', PART .. part, ttl)
if job and redis.call('HGET', RECORD .. job, 'queue') == queue
  and index < tonumber(redis.call('HGET', RECORD .. job, 'n')) then
  fail(queue, job, index, ttl, reason, 'refused')
end
