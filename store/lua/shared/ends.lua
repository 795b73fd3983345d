-- The end of parts and jobs, and the return of parts to the queue.

-- Add to the bytes that a job counts against its owner: for its results and its records in Redis.
local function count_bytes(owner, job, bytes)
  renewing(BYTES .. owner, function()
    redis.call('HINCRBY', BYTES .. owner, job, bytes)
    redis.call('HINCRBY', BYTES .. owner, 'sum', bytes)
  end)
  renewing(STORED .. owner, function() redis.call('ZADD', STORED .. owner, 'NX', '+inf', job) end)
  redis.call('EXPIRE', STORED .. owner, KEPT_S)
  redis.call('EXPIRE', BYTES .. owner, KEPT_S)
end

-- Change the bytes that a job counts. Does nothing for a job that is not counted.
local function recount_bytes(owner, job, change)
  local bytes = tonumber(redis.call('HGET', BYTES .. owner, job) or nil)
  if bytes then count_bytes(owner, job, change(bytes) - bytes) end
end

-- Stop counting a job.
local function forget_bytes(owner, job)
  local bytes = redis.call('HGET', BYTES .. owner, job)
  if not bytes then return end
  redis.call('HINCRBY', BYTES .. owner, 'sum', 0 - tonumber(bytes))
  redis.call('HDEL', BYTES .. owner, job)
  redis.call('ZREM', STORED .. owner, job)
end

-- Delete a part's lease, and the execution that RQ's tools see.
local function release(queue, job, index)
  local part, execution = part_of(job, index), read(job, 'execution:' .. index)
  guarded(redis.call, 'ZREM', LEASES .. queue, part)
  if execution then show_released(queue, part, execution) end
end

-- Write a part's end state, once. Then no execution owns the part. The last one is remembered.
local function conclude(queue, job, index, outcome)
  release(queue, job, index)
  if redis.call('HSETNX', RECORD .. job, 'outcome:' .. index, outcome) == 0 then return end
  guarded(redis.call, 'HINCRBY', RECORD .. job, 'open', -1)
  drop_progress(job, index)
  redis.call('HDEL', RECORD .. job, 'started:' .. index)
  if outcome == 'finished' then redis.call('HDEL', RECORD .. job, 'step:' .. index) end -- all steps
  show(part_of(job, index), 'status', outcome)
end

-- Delete all data of a part that had no end state when its job ended.
local function forget_part(queue, job, index)
  release(queue, job, index)
  drop_progress(job, index)
  local told = read(job, 'started:' .. index)
  if told then guarded(redis.call, 'XDEL', EVENTS .. job, told) end
  redis.call('HDEL', RECORD .. job, 'execution:' .. index, 'started:' .. index, 'step:' .. index,
    'losses:' .. index, 'queue_s:' .. index)
end

-- Count an ended job for the metrics. There are few combinations of these labels.
local function count_end(job, outcome, cause)
  local model, label, priority = read(job, 'model_name', 'label', 'priority')
  local kind = cjson.encode({model or '', label or '', priority, outcome, cause})
  renewing(ENDS, function() redis.call('HINCRBY', ENDS, kind, 1) end)
end

-- End a job, once. Its open parts end, all its keys expire, and subscribers are notified. `cause`
-- is a short reason for a failure, `failed` the index of the image that failed. RQ's hashes are
-- deleted, except that of the failed part. The record keeps nothing of a canceled part.
local function end_job(job, ttl, reason, cause, failed)
  local record = RECORD .. job
  local n, queue, owner, digest, steps, room =
    read(job, 'n', 'queue', 'owner', 'digest', 'steps', 'room')
  n, steps, room = images(n), tonumber(steps) or 0, tonumber(room) or 0
  if n == 0 or redis.call('HSETNX', record, 'ended_at', text(now())) == 0 then return end
  if reason then write(job, 'error', reason) end
  local ended_as, done, delivered, in_line = 'finished', 0, 0, {}
  for index = 0, n - 1 do
    local part = part_of(job, index)
    local outcome, execution, step =
      read(job, 'outcome:' .. index, 'execution:' .. index, 'step:' .. index)
    if not outcome then
      outcome = index == failed and 'failed' or 'canceled'
      if not execution then in_line[#in_line + 1] = part end
      if outcome == 'failed' then
        conclude(queue, job, index, outcome)
      else
        forget_part(queue, job, index)
        step = nil
      end
    end
    if outcome == 'failed' or ended_as == 'finished' then ended_as = outcome end
    if outcome == 'finished' then delivered = delivered + 1 end
    done = done + (outcome == 'finished' and steps or tonumber(step or 0) or 0)
    if outcome == 'failed' then
      redis.call('EXPIRE', PART .. part, ttl)
    else
      redis.call('UNLINK', PART .. part)
    end
    redis.call('EXPIRE', RESULT .. part, ttl)
  end
  take_out_of_line(job, in_line)
  -- For lists of jobs: the parts do not change any more.
  write(job, 'ended_as', ended_as, 'ended_steps', done)
  count_end(job, ended_as, cause or '')
  add_event(job, ended_as, {error = reason})
  redis.call('EXPIRE', record, ttl)
  redis.call('EXPIRE', EVENTS .. job, ttl)
  redis.call('SET', GONE .. job, digest or '', 'EX', ttl + GONE_S)
  guarded(recount_bytes, owner, job, function(bytes)
    return bytes - n * PART_BYTES - (n - delivered) * room + delivered * IMAGE_BYTES
  end)
  guarded(redis.call, 'ZADD', STORED .. owner, 'XX', text(now() + ttl), job)
  guarded(redis.call, 'ZADD', OBJECTS, 'XX', text(now() + ttl + 1), job)
  if read(job, 'notify') then notify_at(owner, job, now()) end
  redis.call('PUBLISH', ENDED_CHANNEL, job)
end

local function fail(queue, job, index, ttl, reason, cause)
  show_failed(queue, part_of(job, index), reason, ttl)
  end_job(job, ttl, reason, cause, index)
end

-- End the job of a part that was canceled, stopped or deleted with RQ's own tools.
local function end_if_withdrawn(job, index, ttl)
  if part_state(job, index) == 'canceled' then end_job(job, ttl) end
end

-- Whether an execution owns its part. If not, RQ's tools may have withdrawn it: then its job ends.
local function still_owned(job, index, execution, ttl)
  if owned(job, index, execution) then return true end
  end_if_withdrawn(job, index, ttl)
  return false
end

-- Whether a part that was claimed or held must still be drawn. If RQ's tools have withdrawn it, its
-- job ends. If its job does not exist or has fewer images, the part expires.
local function to_be_drawn(job, index, ttl)
  local part = part_of(job, index)
  local n = images_of(job)
  if n == 0 and redis.call('EXISTS', RECORD .. job) == 1 then unreadable() end
  if index >= n then
    redis.call('EXPIRE', PART .. part, ttl)
    if n == 0 then redis.call('EXPIRE', EVENTS .. job, ttl) end
    return false
  end
  end_if_withdrawn(job, index, ttl)
  local state = part_state(job, index)
  show(part, 'status', state) -- RQ's tools may have changed it
  return state == 'queued'
end

-- Put a started part back at the front of its line. A `cause` other than '' means that the part
-- could not be drawn, which uses up one of RETRIES. After the last one it fails with `reason`.
local function put_back(queue, job, index, ttl, cause, reason)
  release(queue, job, index)
  local execution = read(job, 'execution:' .. index)
  redis.call('HDEL', RECORD .. job, 'execution:' .. index)
  if not to_be_drawn(job, index, ttl) then return end
  local part = part_of(job, index)
  if cause ~= '' then
    local losses = redis.call('HINCRBY', RECORD .. job, 'losses:' .. index, 1)
    if losses > RETRIES then
      write(job, 'execution:' .. index, execution) -- its worker may retry this call
      reason = reason .. ' (image ' .. index .. ', ' .. losses .. ' tries)'
      return fail(queue, job, index, ttl, reason, cause)
    end
    show(part, 'retries_left', RETRIES - losses)
  end
  show(part, 'worker_name', '')
  redis.call('HDEL', RECORD .. job, 'step:' .. index)
  put_in_line(job, part, true)
end

-- Call `act` for a part. Returns its answer; nil and true when the part's data is damaged. Then the
-- part leaves the queue, its job fails if possible, and the keys of both expire.
local function with_part(queue, part, ttl, act)
  local job, index = split(part)
  local answer, broken = guarded(act, job, index)
  if not broken then return answer end
  redis.pcall('ZREM', CLAIMS .. queue, part)
  redis.pcall('ZREM', LEASES .. queue, part)
  redis.pcall('LREM', intermediate(queue), 0, part)
  guarded(fail, queue, job, index, ttl, 'what Redis holds of it cannot be read', 'refused')
  for _, key in ipairs({RECORD .. job, EVENTS .. job, PART .. part, RESULT .. part}) do
    redis.call('EXPIRE', key, ttl)
  end
  return nil, true
end
