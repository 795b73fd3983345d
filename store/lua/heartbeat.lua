-- A heartbeat: queue, lease, ttl, steps of an image, then part, execution, step of each held part
-- -> {time, {executions that no longer own their part}}
local queue, lease, ttl, steps = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time, lost = now(), {}
local expiry = text(time + lease)
heal_queue(queue)

local function renew(job, index, part, execution, step)
  redis.call('ZADD', LEASES .. queue, expiry, part)
  show_alive(queue, part, execution, expiry)
  if read(job, 'step:' .. index) == step then return end
  drop_progress(job, index)
  local told = add_event(job, 'progress', {index = index, step = tonumber(step), steps = steps})
  write(job, 'step:' .. index, step, 'progress:' .. index, told)
end

for at = 5, #ARGV, 3 do
  local part, execution, step = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local kept = with_part(queue, part, ttl, function(job, index)
    if not still_owned(job, index, execution, ttl) then
      show_released(queue, part, execution)
      return false
    end
    renew(job, index, part, execution, step)
    return true
  end)
  if not kept then lost[#lost + 1] = execution end
end
return {text(time), lost}
