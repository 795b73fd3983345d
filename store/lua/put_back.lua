-- queue, part, execution, ttl, cause, reason -> 'queued', or 'failed' after the last retry; nil
-- when the execution does not own the part. A cause other than '' means that the part could not be
-- drawn, which uses up one retry.
local queue, part, execution, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

return with_part(queue, part, ttl, function(job, index)
  if has_ended(job, index, execution, 'failed') then return 'failed' end
  if not still_owned(job, index, execution, ttl) then return nil end
  put_back(queue, job, index, ttl, ARGV[5], ARGV[6])
  return part_state(job, index)
end)
