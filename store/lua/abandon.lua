-- queue, ttl, reason, most -> how many jobs failed; the queue's model is forgotten once none waits
local queue, ttl, reason, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local failed = 0
for _, class in ipairs({'interactive', 'bulk'}) do
  for _, owner in ipairs(redis.call('ZRANGE', FAIR .. queue .. '.' .. class, 0, -1)) do
    while failed < most do
      local part = redis.call('LINDEX', list_of(queue, class, owner), 0)
      if not part then break end
      local job, index = split(part)
      if job and redis.call('EXISTS', RECORD .. job) == 1 then
        fail(queue, job, index, ttl, reason, 'no worker')
        failed = failed + 1
      else
        redis.call('LPOP', list_of(queue, class, owner))
      end
    end
  end
end
if waiting(queue) == 0 then redis.call('HDEL', MODELS, queue) end
return failed
