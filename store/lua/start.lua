-- queue, part, execution, worker, lease, ttl -> {workers lost, queue_s, priority, key name, trace};
-- nil when it is not to be drawn
local queue, part, execution, worker, lease, ttl = unpack(ARGV)
local job, index = split(part)

local function begin()
  redis.call('ZREM', CLAIMS .. queue, part)
  if redis.call('LREM', intermediate(queue), 1, part) == 0 then return false end
  if not to_be_drawn(job, index, tonumber(ttl)) then return false end
  local time = now()
  local expiry = text(time + tonumber(lease))
  local queue_s = text(time - tonumber(read(job, 'created_at')))
  write(job, 'execution:' .. index, execution, 'queue_s:' .. index, queue_s)
  redis.call('HSETNX', RECORD .. job, 'started_at', text(time))
  redis.call('ZADD', LEASES .. queue, expiry, part)
  show_started(queue, part, execution, worker, expiry)
  tell(job, 'started', {index = index})
  return true
end

if not owned(job, index, execution) and not begin() then return nil end
return {read(job, 'losses:' .. index, 'queue_s:' .. index, 'priority', 'key_name', 'trace')}
