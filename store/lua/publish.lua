-- queue, its model (JSON), member, alive until, speed (JSON, or '' for none), then how many damaged
-- queues, these, and members that are silent or damaged
local queue, model, member, until_s, speed = unpack(ARGV)
local last = 6 + tonumber(ARGV[6])
for at = 7, last do redis.call('HDEL', MODELS, ARGV[at]) end
for at = last + 1, #ARGV do
  redis.call('ZREM', WORKERS, ARGV[at])
  redis.call('HDEL', SPEEDS, ARGV[at])
end
redis.call('HSET', MODELS, queue, model)
redis.call('ZADD', WORKERS, until_s, member)
if speed ~= '' then redis.call('HSET', SPEEDS, member, speed) end
