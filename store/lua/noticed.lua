-- job, owner, seconds to the next try ('' for none), error ('' when delivered): records the
-- outcome of one try to send a webhook
local job, owner, again, reason = unpack(ARGV)
local time = now()
redis.call('ZREM', NOTICES .. owner, job)
if redis.call('EXISTS', RECORD .. job) == 1 then
  guarded(redis.call, 'HINCRBY', RECORD .. job, 'notify_tries', 1)
  write(job, 'notify_error', reason)
  if reason == '' then write(job, 'notified_at', text(time)) end
  if again ~= '' then notify_at(owner, job, time + tonumber(again)) end
end
give_turn(owner, time)
