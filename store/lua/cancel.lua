-- job, ttl, call -> 1, or 0 when there is nothing to cancel. A retry of the same call returns the
-- same.
local job, ttl, call = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local n, ended, canceled_by, queue = read(job, 'n', 'ended_at', 'canceled_by', 'queue')
if canceled_by == call then return 1 end
if images(n) == 0 or ended then return 0 end
with_part(queue or '', part_of(job, 0), ttl, function()
  end_job(job, ttl)
  write(job, 'canceled_by', call)
end)
return 1
