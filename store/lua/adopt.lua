-- queue, target queue, target numerics, ttl, reason -> number of jobs moved to the target queue
local queue, target, numerics, ttl, reason = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local moved = 0

local function count_states(job, n)
  local count = {queued = 0, started = 0, finished = 0, failed = 0, canceled = 0}
  for index = 0, n - 1 do
    local state = part_state(job, index)
    local claimed = redis.call('ZSCORE', CLAIMS .. queue, part_of(job, index))
    if claimed and state == 'queued' then state = 'started' end -- it can start at any moment
    count[state] = count[state] + 1
  end
  return count
end

local function move(job, n)
  local parts = {}
  for index = 0, n - 1 do parts[index + 1] = part_of(job, index) end
  take_out_of_line(job, parts)
  write(job, 'queue', target, 'model_numerics', numerics)
  for _, part in ipairs(parts) do
    show(part, 'origin', target)
    put_in_line(job, part, false)
  end
  moved = moved + 1
end

local function look(job, index)
  if read(job, 'queue') ~= queue then return end
  local n = images_of(job)
  local count = count_states(job, n)
  if count.canceled > 0 then -- by RQ's own tools
    end_job(job, ttl)
  elseif count.queued == n then
    move(job, n)
  elseif count.finished > 0 and count.started == 0 then
    fail(queue, job, index, ttl, reason, 'numerics')
  end
end

heal_queue(queue)
heal_queue(target)
local seen = {}
for _, list in ipairs(lists_of(queue)) do
  for _, part in ipairs(redis.call('LRANGE', list, 0, -1)) do
    local job = split(part)
    if not seen[job] then
      seen[job] = true
      with_part(queue, part, ttl, look)
    end
  end
end
return moved
