-- queue, part, ttl, reason. The hash may hold anything, so nothing in it is trusted.
local queue, part, ttl, reason = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local job, index = split(part)
redis.call('ZREM', CLAIMS .. queue, part)
redis.call('LREM', intermediate(queue), 0, part)
show_failed(queue, part, reason, ttl)
redis.call('EXPIRE', PART .. part, ttl)
if job and read(job, 'queue') == queue and index < tonumber(read(job, 'n')) then
  fail(queue, job, index, ttl, reason, 'refused')
end
