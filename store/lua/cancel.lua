-- job, ttl -> 1, or 0 when there is nothing to cancel
local job, ttl = ARGV[1], tonumber(ARGV[2])
local n, ended = read(job, 'n', 'ended_at')
if not n or ended then return 0 end
end_job(job, ttl)
return 1
