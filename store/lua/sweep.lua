-- queue, lease, ttl -> number of abandoned parts found. Redis runs one script at a time, so two
-- sweeps never queue a part twice, and no lock is needed.
local queue, lease, ttl, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 0
local time = now()
heal_queue(queue)
-- From the last to the first, because each part is put at the front. Claimed parts first: they
-- come after the started ones in line.
local claimed = redis.call('LRANGE', intermediate(queue), 0, -1)
for at = #claimed, 1, -1 do
  local part = claimed[at]
  local expiry = redis.call('ZSCORE', CLAIMS .. queue, part)
  if not expiry then
    redis.call('ZADD', CLAIMS .. queue, text(time + lease), part)
  elseif tonumber(expiry) < time then
    redis.call('LREM', intermediate(queue), 0, part)
    redis.call('ZREM', CLAIMS .. queue, part)
    with_part(queue, part, ttl, function(job, index)
      if to_be_drawn(job, index, ttl) then put_in_line(job, part, true) end
    end)
    count = count + 1
  end
end
local abandoned = redis.call('ZRANGEBYSCORE', LEASES .. queue, '-inf', text(time))
for at = #abandoned, 1, -1 do
  redis.call('ZREM', LEASES .. queue, abandoned[at])
  with_part(queue, abandoned[at], ttl, function(job, index)
    put_back(queue, job, index, ttl, LOST_WORKER, LOST_REASON)
  end)
  count = count + 1
end
for _, shown in ipairs({STARTED, FINISHED, FAILED}) do
  redis.call('ZREMRANGEBYSCORE', shown .. queue, '-inf', text(time))
end
return count
