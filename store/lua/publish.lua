-- queue, its model (JSON), member, now, alive until, speed (JSON, or '' for none), number of
-- damaged queues, these queues, damaged members. Damaged entries are deleted.
local queue, model, member, now_s, until_s, speed = unpack(ARGV)
heal('hash', MODELS, SPEEDS)
heal('zset', WORKERS)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now_s)) do
  redis.call('ZREM', WORKERS, silent)
  redis.call('HDEL', SPEEDS, silent)
end
local last = 7 + tonumber(ARGV[7])
for at = 8, last do redis.call('HDEL', MODELS, ARGV[at]) end
for at = last + 1, #ARGV do
  redis.call('ZREM', WORKERS, ARGV[at])
  redis.call('HDEL', SPEEDS, ARGV[at])
end
redis.call('HSET', MODELS, queue, model)
redis.call('ZADD', WORKERS, until_s, member)
if speed ~= '' then redis.call('HSET', SPEEDS, member, speed) end
