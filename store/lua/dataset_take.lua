-- lease, writer -> uid of the data set whose turn is the longest due, which this writer now has
-- until the lease ends; nil when there is none.
local lease, writer, time = tonumber(ARGV[1]), ARGV[2], now()
heal('zset', DATASET_TURNS)
for _, uid in ipairs(redis.call('ZRANGEBYSCORE', DATASET_TURNS, '-inf', text(time), 'LIMIT', 0,
  TIDIED)) do
  heal('hash', DATASET .. uid)
  if redis.call('HEXISTS', DATASET .. uid, 'status') == 1 then
    redis.call('HSET', DATASET .. uid, 'writer', writer)
    redis.call('ZADD', DATASET_TURNS, text(time + lease), uid)
    return uid
  end
  redis.call('ZREM', DATASET_TURNS, uid)
end
