-- queue, target queue, target numerics, ttl, reason -> how many jobs moved
local queue, target, numerics, ttl, reason = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local moved = 0

local function count_states(job)
  local count = {queued = 0, started = 0, finished = 0, failed = 0, canceled = 0}
  local n = tonumber(redis.call('HGET', RECORD .. job, 'n'))
  for index = 0, n - 1 do
    local state = part_state(job, index)
    local claimed = redis.call('ZSCORE', CLAIMS .. queue, job .. '_' .. index)
    if claimed and state == 'queued' then state = 'started' end -- it may be, at any moment
    count[state] = count[state] + 1
  end
  return count, n
end

local function move(job, n)
  take_out_of_line(job)
  redis.call('HSET', RECORD .. job, 'queue', target, 'model_numerics', numerics)
  for index = 0, n - 1 do
    redis.call('HSET', PART .. job .. '_' .. index, 'origin', target)
    put_in_line(job, job .. '_' .. index, false)
  end
  moved = moved + 1
end

local seen = {}
for _, class in ipairs(PRIORITIES) do
  for _, owner in ipairs(redis.call('ZRANGE', FAIR .. queue .. '.' .. class, 0, -1)) do
    for _, part in ipairs(redis.call('LRANGE', list_of(queue, class, owner), 0, -1)) do
      local job, index = split(part)
      if job and not seen[job] and redis.call('HGET', RECORD .. job, 'queue') == queue then
        seen[job] = true
        local count, n = count_states(job)
        if count.canceled > 0 then -- with RQ's own tools
          end_job(job, ttl)
        elseif count.queued == n then
          move(job, n)
        elseif count.finished > 0 and count.started == 0 then
          fail(queue, job, index, ttl, reason, 'numerics')
        end
      end
    end
  end
end
return moved
