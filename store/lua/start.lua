-- queue, part, execution, worker, lease, ttl -> {losses, queue_s, priority, key name, trace}; nil
-- when this execution must not draw the part
local queue, part, execution, worker, lease, ttl = unpack(ARGV)
lease, ttl = tonumber(lease), tonumber(ttl)

local function begin(job, index)
  redis.call('ZREM', CLAIMS .. queue, part)
  if redis.call('LREM', intermediate(queue), 1, part) == 0 then return false end
  if not to_be_drawn(job, index, ttl) then return false end
  local time = now()
  local queue_s = text(time - tonumber(read(job, 'created_at')))
  write(job, 'execution:' .. index, execution, 'queue_s:' .. index, queue_s)
  redis.call('HSETNX', RECORD .. job, 'started_at', text(time))
  redis.call('ZADD', LEASES .. queue, text(time + lease), part)
  show_started(queue, part, execution, worker, text(time + lease))
  write(job, 'started:' .. index, add_event(job, 'started', {index = index}))
  return true
end

return with_part(queue, part, ttl, function(job, index)
  if not owned(job, index, execution) and not begin(job, index) then return nil end
  local losses, queue_s, priority, key, trace =
    read(job, 'losses:' .. index, 'queue_s:' .. index, 'priority', 'key_name', 'trace')
  if priority ~= INTERACTIVE and priority ~= BULK then unreadable() end
  return {(losses or 0) + 0, queue_s, priority, key or '', trace or ''}
end)
