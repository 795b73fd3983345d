-- queue, part, execution, ttl, decode_s, then field, value, size of each file
-- -> total_s; nil when the execution does not own the part
local queue, part, execution, ttl, decode_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

return with_part(queue, part, ttl, function(job, index)
  if has_ended(job, index, execution, 'finished') then return (read(job, 'total_s:' .. index)) end
  if not still_owned(job, index, execution, ttl) then return nil end
  local owner, created_at, room = read(job, 'owner', 'created_at', 'room')
  local total_s, bytes = text(now() - tonumber(created_at)), 0
  heal('hash', RESULT .. part)
  for at = 6, #ARGV, 3 do
    redis.call('HSET', RESULT .. part, ARGV[at], ARGV[at + 1])
    bytes = bytes + tonumber(ARGV[at + 2])
  end
  write(job, 'decode_s:' .. index, decode_s, 'total_s:' .. index, total_s)
  count_bytes(owner, job, bytes - tonumber(room))
  conclude(queue, job, index, 'finished')
  guarded(redis.call, 'ZADD', FINISHED .. queue, text(now() + ttl), part)
  add_event(job, 'image', {index = index})
  if tonumber(read(job, 'open')) <= 0 then end_job(job, ttl) end
  return total_s
end)
