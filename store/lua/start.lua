-- queue, part, execution, worker, lease, ttl -> {tries left, queue_s, priority, key name, trace}; nil
-- when it is not to be drawn
local queue, part, execution, worker, lease, ttl = unpack(ARGV)
local job, index = split(part)
local record = RECORD .. job
redis.call('ZREM', CLAIMS .. queue, part)
if redis.call('LREM', intermediate(queue), 1, part) == 0 then return nil end
if not to_be_drawn(job, index, tonumber(ttl)) then return nil end
local time = now()
local expiry = text(time + tonumber(lease))
redis.call('HSET', record, 'execution:' .. index, execution)
redis.call('ZADD', LEASES .. queue, expiry, part)
-- For RQ's tools. They would trim the last by the clock of their host, and then not find the first.
redis.call('ZADD', STARTED .. queue, expiry, part .. ':' .. execution)
redis.call('ZADD', EXECUTIONS .. part, '+inf', execution)
redis.call('HSET', EXECUTION .. part .. ':' .. execution, 'id', execution, 'worker_name', worker,
  'created_at', text(time), 'last_heartbeat', text(time))
redis.call('HSET', PART .. part, 'status', 'started', 'worker_name', worker)
redis.call('HSETNX', record, 'started_at', text(time))
local queue_s = text(time - tonumber(redis.call('HGET', record, 'created_at')))
redis.call('HSET', record, 'queue_s:' .. index, queue_s)
tell(job, 'started', {index = index})
return {redis.call('HGET', PART .. part, 'retries_left') or '0', queue_s,
  unpack(redis.call('HMGET', record, 'priority', 'key_name', 'trace'))}
