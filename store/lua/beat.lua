-- queue, lease, ttl, steps of an image, then part, execution, step of each held part
-- -> the executions that own their part no more
local queue, ttl, steps, lost = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), {}
local expiry = text(now() + tonumber(ARGV[2]))
for at = 5, #ARGV, 3 do
  local part, execution, step = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local job, index = split(part)
  if owned(queue, part, execution) then
    redis.call('ZADD', STARTED .. queue, 'XX', expiry, part .. ':' .. execution)
    redis.call('HSET', EXECUTION .. part .. ':' .. execution, 'last_heartbeat', text(now()))
    if redis.call('HGET', RECORD .. job, 'step:' .. index) ~= step then
      redis.call('HSET', RECORD .. job, 'step:' .. index, step)
      untell(job, index)
      local told = tell(job, 'progress', {index = index, step = tonumber(step), steps = steps})
      redis.call('HSET', RECORD .. job, 'progress:' .. index, told)
    end
  else
    settle(job, index, ttl)
    lost[#lost + 1] = execution
  end
end
return lost
