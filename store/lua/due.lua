-- lease, most, look -> {job, until, ...}: jobs whose objects are to be deleted now, set aside until
-- then. What a living job has is looked at again; so is what an ended one has, once it expires.
local lease, most, look, found = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), {}
local time = now()
for _, job in ipairs(redis.call('ZRANGEBYSCORE', OBJECTS, '-inf', text(time), 'LIMIT', 0, most)) do
  local record = RECORD .. job
  local ended, dropped = read(job, 'ended_at', 'dropped')
  local again = time + look
  if dropped or redis.call('EXISTS', record) == 0 then
    again = time + lease
    found[#found + 1] = job
    found[#found + 1] = text(again)
  elseif ended then
    again = time + math.max(0, redis.call('TTL', record)) + 1
  end
  redis.call('ZADD', OBJECTS, text(again), job)
end
return found
