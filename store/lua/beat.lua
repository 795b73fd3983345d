-- queue, lease, ttl, steps of an image, then part, execution, step of each held part
-- -> {the time, {the executions that own their part no more}}
local queue, lease, ttl, steps = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time, lost = now(), {}
local expiry = text(time + lease)
-- First of all, and by those that hold nothing, too: who has no word of a full Redis takes those
-- that cannot renew their leases for dead.
redis.call('SET', ROOM, text(time), 'PX', 1000 * lease)
for at = 5, #ARGV, 3 do
  local part, execution, step = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local job, index = split(part)
  if owned(part, execution) then
    redis.call('ZADD', LEASES .. queue, 'XX', expiry, part)
    redis.call('ZADD', STARTED .. queue, 'XX', expiry, part .. ':' .. execution)
    redis.call('HSET', EXECUTION .. part .. ':' .. execution, 'last_heartbeat', text(time))
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
return {text(time), lost}
