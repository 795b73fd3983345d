-- uid, writer -> 1 when the data set is settled: nothing is left of one that was dropped, and one
-- that was canceled gets no more turns. 0 when it is not this writer's, or goes on.
local uid, writer = ARGV[1], ARGV[2]
local record = DATASET .. uid
heal('hash', record)
local status, holder = unpack(redis.call('HMGET', record, 'status', 'writer'))
if status and holder ~= writer then return 0 end
if status == 'queued' or status == 'started' then return 0 end
redis.call('ZREM', DATASET_TURNS, uid)
if not status or status == 'dropped' then redis.call('DEL', record, SHARDS .. uid) end
return 1
