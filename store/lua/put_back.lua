-- queue, part, execution, ttl, cause, reason -> 'queued', or 'failed' after the last retry; nil
-- when the execution does not own the part. A cause other than '' means that the part could not be
-- drawn, which uses up one retry.
local queue, part, execution, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

return about(queue, part, ttl, function(job, index)
  if was_told(job, index, execution, 'failed') then return 'failed' end
  if owned(job, index, execution) then
    put_back(queue, job, index, ttl, ARGV[5], ARGV[6])
    return part_state(job, index)
  end
  settle(job, index, ttl)
end)
