-- queue, ttl, reason, most -> number of failed jobs. Fails up to `most` jobs of a queue, and
-- removes the queue's model once the queue is empty.
local queue, ttl, reason, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local failed = 0
heal_queue(queue)
for _, list in ipairs(lists_of(queue)) do
  while failed < most do
    local part = redis.call('LINDEX', list, 0)
    if not part then break end
    with_part(queue, part, ttl, function(job, index)
      if images_of(job) > 0 then fail(queue, job, index, ttl, reason, 'no worker') end
    end)
    redis.call('LREM', list, 1, part) -- still there if it belongs to no job
    failed = failed + 1
  end
end
-- Workers find a queue only by its model, so parts that are still held must come back first.
local held = redis.call('LLEN', intermediate(queue)) + redis.call('ZCARD', LEASES .. queue)
if waiting(queue) + held == 0 then
  redis.call('HDEL', MODELS, queue)
  redis.call('SREM', QUEUES, QUEUE .. queue)
  redis.call('DEL', FINISHED .. queue, FAILED .. queue)
end
return failed
