-- job -> 1, or 0 when it has not ended or is gone: its results are dropped before their time
local job = ARGV[1]
local owner, ended = read(job, 'owner', 'ended_at')
if not ended then return 0 end
for index = 0, images_of(job) - 1 do redis.call('UNLINK', RESULT .. part_of(job, index)) end
guarded(forget_bytes, owner, job)
write(job, 'dropped', '1')
redis.call('ZADD', OBJECTS, 'XX', text(now()), job)
return 1
