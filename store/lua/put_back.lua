-- queue, part, execution, ttl, then why the part could not be drawn, cause and reason, which costs it
-- a try; the cause is '' where it costs none -> 'queued', or 'failed' after the last try; nil where
-- the execution did not own it
local queue, part, execution, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

return about(queue, part, ttl, function(job, index)
  if was_told(job, index, execution, 'failed') then return 'failed' end
  if owned(job, index, execution) then
    put_back(queue, job, index, ttl, ARGV[5], ARGV[6])
    return part_state(job, index)
  end
  settle(job, index, ttl)
end)
