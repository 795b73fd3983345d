-- queue, part, execution, ttl, '1' when the part may have broken its worker
local queue, part, execution, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

about(queue, part, ttl, function(job, index)
  if owned(job, index, execution) then
    put_back(queue, job, index, ttl, ARGV[5] == '1')
  else
    settle(job, index, ttl)
  end
end)
