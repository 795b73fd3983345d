-- job -> 1, or 0 when it has not ended or is gone: its results are dropped before their time, and
-- what it counts from then on is its records in Redis
local job = ARGV[1]
local owner, ended = read(job, 'owner', 'ended_at')
if not ended then return 0 end
local delivered = 0
for index = 0, images_of(job) - 1 do
  redis.call('UNLINK', RESULT .. part_of(job, index))
  if read(job, 'outcome:' .. index) == 'finished' then delivered = delivered + 1 end
end
guarded(recount_bytes, owner, job, function() return RECORD_BYTES + delivered * IMAGE_BYTES end)
write(job, 'dropped', '1')
redis.call('ZADD', OBJECTS, 'XX', text(now()), job)
return 1
