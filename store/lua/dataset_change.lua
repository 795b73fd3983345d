-- owner, id, change -> uid; nil when there is no such data set. `change` is 'pause', 'resume',
-- 'cancel' or 'drop'. A change that the data set's status does not allow leaves it as it is.
local owner, id, change, time = ARGV[1], ARGV[2], ARGV[3], text(now())
heal('hash', DATASETS .. owner)
heal('zset', DATASET_TURNS)
local uid = redis.call('HGET', DATASETS .. owner, id)
if not uid then return end
local record = DATASET .. uid
heal('hash', record)
local status, started = unpack(redis.call('HMGET', record, 'status', 'started_at'))
local drawing = status == 'queued' or status == 'started'
if change == 'drop' or not status then
  redis.call('HDEL', DATASETS .. owner, id)
  redis.call('HSET', record, 'status', 'dropped')
  redis.call('ZADD', DATASET_TURNS, time, uid)
elseif change == 'pause' and drawing then
  redis.call('HSET', record, 'status', 'paused')
  redis.call('HDEL', record, 'mark_at', 'rate', 'trouble')
  redis.call('ZREM', DATASET_TURNS, uid)
elseif change == 'resume' and (status == 'paused' or status == 'failed') then
  redis.call('HSET', record, 'status', started and 'started' or 'queued')
  redis.call('HDEL', record, 'ended_at', 'error', 'trouble', 'mark_at', 'rate')
  redis.call('HINCRBY', record, 'resumes', 1)
  redis.call('ZADD', DATASET_TURNS, time, uid)
elseif change == 'cancel' and (drawing or status == 'paused') then
  redis.call('HSET', record, 'status', 'canceled', 'ended_at', time)
  redis.call('HDEL', record, 'mark_at', 'rate', 'trouble')
  redis.call('ZADD', DATASET_TURNS, time, uid) -- a writer cancels its jobs
end
return uid
