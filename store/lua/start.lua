-- queue, part, execution, worker, lease, ttl -> {tries left, queue_s, priority, key name, trace}, or nil when not to be drawn
local queue, part, execution, worker, lease, ttl = unpack(ARGV)
local job, index = split(part)
local record = RECORD .. job
redis.call('ZREM', CLAIMS .. queue, part)
if redis.call('LREM', intermediate(queue), 1, part) == 0 then return nil end
if redis.call('EXISTS', record) == 0 then
  redis.call('DEL', PART .. part)
  return nil
end
if rq_status(part) ~= 'queued' then
  settle(job, index, tonumber(ttl))
  return nil
end
local outcome = redis.call('HGET', record, 'outcome:' .. index)
if outcome then
  redis.call('HSET', PART .. part, 'status', outcome)
  return nil
end
local time = now()
local expiry = text(time + tonumber(lease))
release(queue, part)
redis.call('ZADD', STARTED .. queue, expiry, part .. ':' .. execution)
redis.call('ZADD', EXECUTIONS .. part, expiry, execution)
redis.call('HSET', EXECUTION .. part .. ':' .. execution, 'id', execution, 'worker_name', worker,
  'created_at', text(time), 'last_heartbeat', text(time))
redis.call('HSET', PART .. part, 'status', 'started', 'worker_name', worker)
redis.call('HSETNX', record, 'started_at', text(time))
local queue_s = text(time - tonumber(redis.call('HGET', record, 'created_at')))
redis.call('HSET', record, 'queue_s:' .. index, queue_s)
tell(job, 'started', {index = index})
return {redis.call('HGET', PART .. part, 'retries_left') or '0', queue_s,
  unpack(redis.call('HMGET', record, 'priority', 'key_name', 'trace'))}
