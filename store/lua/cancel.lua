-- job, ttl -> 1, or 0 when there is nothing to cancel
local record = RECORD .. ARGV[1]
if redis.call('EXISTS', record) == 0 or redis.call('HEXISTS', record, 'ended_at') == 1 then
  return 0
end
end_job(ARGV[1], tonumber(ARGV[2]))
return 1
