-- job -> 1, or 0 when it has not ended or is gone: its results are dropped before their time
local job = ARGV[1]
local n, owner, ended = unpack(redis.call('HMGET', RECORD .. job, 'n', 'owner', 'ended_at'))
if not ended then return 0 end
for index = 0, tonumber(n) - 1 do redis.call('UNLINK', RESULT .. job .. '_' .. index) end
forget_bytes(owner, job)
redis.call('HSET', RECORD .. job, 'dropped', '1')
redis.call('ZADD', OBJECTS, 'XX', text(now()), job)
return 1
