-- job -> 1, or 0 when it has not ended or is gone: its results are dropped before their time
local job = ARGV[1]
local n, owner, ended = read(job, 'n', 'owner', 'ended_at')
if not ended then return 0 end
for index = 0, tonumber(n) - 1 do redis.call('UNLINK', RESULT .. part_of(job, index)) end
forget_bytes(owner, job)
write(job, 'dropped', '1')
redis.call('ZADD', OBJECTS, 'XX', text(now()), job)
return 1
