-- queue, part, execution, ttl, reason, cause -> 1, or 0 when the execution does not own the part
local queue, part, execution, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

return with_part(queue, part, ttl, function(job, index)
  if has_ended(job, index, execution, 'failed') then return 1 end
  if not still_owned(job, index, execution, ttl) then return 0 end
  fail(queue, job, index, ttl, ARGV[5], ARGV[6])
  return 1
end)
