-- job, until, ...: records that the objects of these jobs were deleted. An upload for a dropped
-- job may still be running, so the job is checked once more when its record expires.
for at = 1, #ARGV, 2 do
  local job, lease = ARGV[at], tonumber(ARGV[at + 1])
  if tonumber(redis.call('ZSCORE', OBJECTS, job) or 0) == lease then
    local left = redis.call('TTL', RECORD .. job)
    if left < 0 then
      redis.call('ZREM', OBJECTS, job)
    else
      redis.call('ZADD', OBJECTS, text(now() + left + 1), job)
    end
  end
end
