-- job, index, field, ... -> {state, {value, ...}} of one image; nil when there is none
local job, index = ARGV[1], ARGV[2]
local n = redis.call('HGET', RECORD .. job, 'n')
if not n or tonumber(index) >= tonumber(n) then return nil end
return {part_state(job, index), redis.call('HMGET', RECORD .. job, unpack(ARGV, 3))}
