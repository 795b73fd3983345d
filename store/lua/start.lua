-- queue, part, execution, worker, lease, ttl -> {workers lost, queue_s, priority, key name, trace};
-- nil when it is not to be drawn
local queue, part, execution, worker, lease, ttl = unpack(ARGV)
local job, index = split(part)
redis.call('ZREM', CLAIMS .. queue, part)
if redis.call('LREM', intermediate(queue), 1, part) == 0 then return nil end
if not to_be_drawn(job, index, tonumber(ttl)) then return nil end
local time = now()
local expiry = text(time + tonumber(lease))
local queue_s = text(time - tonumber(read(job, 'created_at')))
write(job, 'execution:' .. index, execution, 'queue_s:' .. index, queue_s)
redis.call('HSETNX', RECORD .. job, 'started_at', text(time))
redis.call('ZADD', LEASES .. queue, expiry, part)
show_started(queue, part, execution, worker, expiry)
tell(job, 'started', {index = index})
local losses, priority, key, trace = read(job, 'losses:' .. index, 'priority', 'key_name', 'trace')
return {losses or '0', queue_s, priority, key, trace}
