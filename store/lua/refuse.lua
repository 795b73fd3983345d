-- queue, part, ttl, reason -> 1, or 0 when RQ's tools had withdrawn the part: then its job is
-- canceled. Does not trust the part's hash, which may contain anything.
local queue, part, ttl, reason = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

return with_part(queue, part, ttl, function(job, index)
  redis.call('ZREM', CLAIMS .. queue, part)
  redis.call('LREM', intermediate(queue), 0, part)
  redis.call('EXPIRE', PART .. part, ttl)
  local own, n = read(job, 'queue', 'n')
  local of_job = own == queue and index < images(n)
  if of_job and withdrawn(part) then
    end_if_withdrawn(job, index, ttl)
    return 0
  end
  show_failed(queue, part, reason, ttl)
  if of_job then fail(queue, job, index, ttl, reason, 'refused') end
  return 1
end)
