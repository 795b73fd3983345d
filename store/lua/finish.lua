-- queue, part, execution, ttl, decode_s, then field, value, size of each file
-- -> total_s, nil when refused
local queue, part, execution, ttl, decode_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local job, index = split(part)
if was_told(job, index, execution, 'finished') then return (read(job, 'total_s:' .. index)) end
if not owned(job, index, execution) then
  settle(job, index, ttl)
  return nil
end
local bytes = 0
for at = 6, #ARGV, 3 do
  redis.call('HSET', RESULT .. part, ARGV[at], ARGV[at + 1])
  bytes = bytes + tonumber(ARGV[at + 2])
end
local owner, created_at = read(job, 'owner', 'created_at')
local total_s = text(now() - tonumber(created_at))
write(job, 'decode_s:' .. index, decode_s, 'total_s:' .. index, total_s)
redis.call('HINCRBY', BYTES .. owner, job, bytes)
redis.call('HINCRBY', BYTES .. owner, 'sum', bytes)
redis.call('ZADD', STORED .. owner, 'NX', '+inf', job)
conclude(queue, job, index, 'finished')
redis.call('ZADD', FINISHED .. queue, text(now() + ttl), part)
tell(job, 'image', {index = index})
if read(job, 'open') == '0' then end_job(job, ttl) end
return total_s
