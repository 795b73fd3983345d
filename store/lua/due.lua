-- lease, most, look -> {job, until, ...}: jobs whose objects must be deleted now. No other worker
-- gets them before `until`. An unfinished job is checked again after `look` seconds, an ended one
-- when it expires. An entry that is not a job id is removed: its folder may belong to something
-- else.
local lease, most, look, found = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), {}
local time = now()

local function again(job)
  local record = RECORD .. job
  local ended, dropped = read(job, 'ended_at', 'dropped')
  if dropped or redis.call('EXISTS', record) == 0 then
    found[#found + 1] = job
    found[#found + 1] = text(time + lease)
    return time + lease
  end
  return time + (ended and math.max(0, redis.call('TTL', record)) + 1 or look)
end

for _, job in ipairs(redis.call('ZRANGEBYSCORE', OBJECTS, '-inf', text(time), 'LIMIT', 0, most)) do
  if string.find(job, '^%x%x%x%x%x%x%x%x%-[%w_-]+$') then
    redis.call('ZADD', OBJECTS, text(again(job)), job)
  else
    damaged = damaged + 1
    redis.call('ZREM', OBJECTS, job)
  end
end
return found
