-- What every script shares: times, states, who waits where, ends and events.

local BULK_TURN = 8 -- with both classes waiting, every so many claims one is bulk's
local INTERACTIVE, BULK = unpack(PRIORITIES)
local MOST_EVENTS = 4096 -- and four for each image

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function text(seconds) return string.format('%.6f', seconds) end

local function intermediate(queue) return QUEUE .. queue .. INTERMEDIATE end

local function split(part)
  local job, index = string.match(part, '^(.+)_(%d+)$')
  return job, tonumber(index)
end

-- Events ------------------------------------------------------------------------------------

-- Keep an event for whoever asks later and tell whoever listens now; the event's id.
local function tell(job, kind, data)
  local most = MOST_EVENTS + 4 * tonumber(redis.call('HGET', RECORD .. job, 'n') or 0)
  local id = redis.call('XADD', EVENTS .. job, 'MAXLEN', '~', most, '*',
    'kind', kind, 'data', cjson.encode(data))
  redis.call('PUBLISH', EVENTS_CHANNEL, job)
  return id
end

-- Forget how far an image was: of that, only the last word is kept.
local function untell(job, index)
  local field = 'progress:' .. index
  local last = redis.call('HGET', RECORD .. job, field)
  if last then
    redis.call('XDEL', EVENTS .. job, last)
    redis.call('HDEL', RECORD .. job, field)
  end
end

-- States ------------------------------------------------------------------------------------

-- The record of its job says in what state a part is: it has an outcome, or an execution that owns
-- it, or it waits. RQ's hash is written for RQ's tools. Of what stands there one thing is believed,
-- and read here alone: that somebody took the part away with such a tool.

-- Whether a part was canceled, stopped or deleted with RQ's own tools.
local function withdrawn(part)
  local status = redis.pcall('HGET', PART .. part, 'status')
  return type(status) ~= 'string' or status == 'canceled' or status == 'stopped'
end

-- The state of a part that has no outcome.
local function open_state(part, execution)
  if withdrawn(part) then return 'canceled' end
  return execution and 'started' or 'queued'
end

local function part_state(job, index)
  local outcome, execution =
    unpack(redis.call('HMGET', RECORD .. job, 'outcome:' .. index, 'execution:' .. index))
  return outcome or open_state(job .. '_' .. index, execution)
end

-- Write into RQ's hash of a part, where there is one.
local function show(part, ...)
  if redis.call('TYPE', PART .. part).ok == 'hash' then redis.call('HSET', PART .. part, ...) end
end

-- Fair shares (start-time fair queueing) ------------------------------------------------------
--
-- Each queue has two classes, each class a list of waiting parts per owner. An owner's tag is its
-- place on a virtual clock that moves by 1 / weight with each image it gets; the lowest tag is
-- next. Whoever comes anew starts at the clock, so nobody saves up turns and nobody waits for
-- those who came before.

local function list_of(queue, class, owner) return QUEUE .. queue .. '.' .. class .. '.' .. owner end

local function weight_of(owner)
  return tonumber(redis.call('HGET', WEIGHTS, owner) or 1)
end

local function clock_field(class, owner) return class .. ':' .. (owner or '') end

-- An owner has parts waiting from now on. `turns` moves its tag: back for a part that was claimed
-- and is put back. Who comes anew starts where the others are.
local function wait_in_line(queue, class, owner, turns)
  local fair, clock = FAIR .. queue .. '.' .. class, CLOCK .. queue
  local tag = tonumber(redis.call('ZSCORE', fair, owner))
  if not tag then
    local last = tonumber(redis.call('HGET', clock, clock_field(class, owner)) or 0)
    local present = tonumber(redis.call('HGET', clock, clock_field(class)) or 0)
    local least = redis.call('ZRANGE', fair, 0, 0, 'WITHSCORES')
    tag = math.max(last, present, tonumber(least[2] or 0))
    redis.call('SADD', QUEUES, QUEUE .. queue, list_of(queue, class, owner))
  end
  redis.call('ZADD', fair, text(tag + turns / weight_of(owner)), owner)
end

-- An owner's last part has been taken. Its tag is kept for a while, or it could come back at once
-- and be first again.
local function leave_line(queue, class, owner)
  local fair, clock = FAIR .. queue .. '.' .. class, CLOCK .. queue
  redis.call('HSET', clock, clock_field(class, owner), redis.call('ZSCORE', fair, owner) or 0)
  redis.call('EXPIRE', clock, CLOCK_S)
  redis.call('ZREM', fair, owner)
  redis.call('SREM', QUEUES, list_of(queue, class, owner))
end

-- The next part of a class, moved to the intermediate list; nil when none waits.
local function next_of(queue, class)
  local fair = FAIR .. queue .. '.' .. class
  while true do
    local first = redis.call('ZRANGE', fair, 0, 0, 'WITHSCORES')
    if #first == 0 then return nil end
    local owner, tag = first[1], tonumber(first[2])
    local list = list_of(queue, class, owner)
    local part = redis.call('LMOVE', list, intermediate(queue), 'LEFT', 'RIGHT')
    if part then
      redis.call('HSET', CLOCK .. queue, clock_field(class), text(tag))
      redis.call('EXPIRE', CLOCK .. queue, CLOCK_S)
      redis.call('ZADD', fair, text(tag + 1 / weight_of(owner)), owner)
    end
    if redis.call('LLEN', list) == 0 then leave_line(queue, class, owner) end
    if part then return part end
  end
end

-- The next part of a queue. Bulk fills what interactive leaves, and has a turn now and then while
-- both wait. What stands in the queue's own list was put there by somebody else and is to be
-- refused.
local function next_part(queue)
  local stray = redis.call('LMOVE', QUEUE .. queue, intermediate(queue), 'LEFT', 'RIGHT')
  if stray then return stray end
  local interactive = redis.call('ZCARD', FAIR .. queue .. '.' .. INTERACTIVE) > 0
  local bulk = redis.call('ZCARD', FAIR .. queue .. '.' .. BULK) > 0
  if not (interactive and bulk) then
    if interactive or bulk then redis.call('HDEL', CLOCK .. queue, 'turn') end
    return interactive and next_of(queue, INTERACTIVE) or bulk and next_of(queue, BULK) or nil
  end
  if redis.call('HINCRBY', CLOCK .. queue, 'turn', 1) >= BULK_TURN then
    redis.call('HDEL', CLOCK .. queue, 'turn')
    return next_of(queue, BULK) or next_of(queue, INTERACTIVE)
  end
  return next_of(queue, INTERACTIVE) or next_of(queue, BULK)
end

-- Put a part of a job in line; at the front when it had been claimed before.
local function put_in_line(job, part, claimed)
  local queue, class, owner =
    unpack(redis.call('HMGET', RECORD .. job, 'queue', 'priority', 'owner'))
  if not queue then return end
  local push = claimed and 'LPUSH' or 'RPUSH'
  redis.call(push, list_of(queue, class, owner), part)
  wait_in_line(queue, class, owner, claimed and -1 or 0)
end

-- Take all of a job's parts out of line, in one pass over its owner's list.
local function take_out_of_line(job)
  local queue, class, owner =
    unpack(redis.call('HMGET', RECORD .. job, 'queue', 'priority', 'owner'))
  if not queue then return end
  local list, kept = list_of(queue, class, owner), {}
  local parts = redis.call('LRANGE', list, 0, -1)
  for _, part in ipairs(parts) do
    if split(part) ~= job then kept[#kept + 1] = part end
  end
  if #kept == #parts then return end
  redis.call('DEL', list)
  for at = 1, #kept, 1000 do
    redis.call('RPUSH', list, unpack(kept, at, math.min(at + 999, #kept)))
  end
  if #kept == 0 then leave_line(queue, class, owner) end
end

-- How many parts of an owner (of all, without one) wait in a queue.
local function waiting(queue, only)
  local count = 0
  for _, class in ipairs(PRIORITIES) do
    for _, owner in ipairs(redis.call('ZRANGE', FAIR .. queue .. '.' .. class, 0, -1)) do
      if not only or owner == only then
        count = count + redis.call('LLEN', list_of(queue, class, owner))
      end
    end
  end
  return count
end

-- How many images are drawn before the one at place `place` (from 0) of an owner's list.
local function before(queue, class, owner, place)
  local tag = tonumber(redis.call('ZSCORE', FAIR .. queue .. '.' .. class, owner) or 0)
  local turn = tag + place / weight_of(owner)
  local ahead, others = place, 0
  local line = redis.call('ZRANGE', FAIR .. queue .. '.' .. class, 0, -1, 'WITHSCORES')
  for at = 1, #line, 2 do
    local gap = turn - tonumber(line[at + 1])
    if line[at] ~= owner and gap >= 0 then
      local turns = math.floor(gap * weight_of(line[at])) + 1
      ahead = ahead + math.min(turns, redis.call('LLEN', list_of(queue, class, line[at])))
    end
  end
  local other = class == BULK and INTERACTIVE or BULK
  for _, each in ipairs(redis.call('ZRANGE', FAIR .. queue .. '.' .. other, 0, -1)) do
    others = others + redis.call('LLEN', list_of(queue, other, each))
  end
  if class == BULK then return ahead + math.min(others, (ahead + 1) * (BULK_TURN - 1)) end
  return ahead + math.min(others, math.floor(ahead / (BULK_TURN - 1)))
end

-- The images before the first and before the last of a job's parts that wait.
local function places_of(job, first, last)
  local queue, class, owner =
    unpack(redis.call('HMGET', RECORD .. job, 'queue', 'priority', 'owner'))
  local places = {}
  for at, index in ipairs({first, last}) do
    local place = redis.call('LPOS', list_of(queue, class, owner), job .. '_' .. index)
    if place then places[at] = before(queue, class, owner, place) end -- no place: claimed just now
  end
  return places
end

-- Ends --------------------------------------------------------------------------------------

-- Results of a job are gone: they count no more against their owner.
local function forget_bytes(owner, job)
  local bytes = redis.call('HGET', BYTES .. owner, job)
  if not bytes then return end
  redis.call('HINCRBY', BYTES .. owner, 'sum', 0 - tonumber(bytes))
  redis.call('HDEL', BYTES .. owner, job)
  redis.call('ZREM', STORED .. owner, job)
end

-- From here on nobody owns a part, and no holder of it can finish it.
local function release(queue, job, index)
  local part = job .. '_' .. index
  redis.call('ZREM', LEASES .. queue, part)
  redis.call('HDEL', RECORD .. job, 'execution:' .. index)
  for _, execution in ipairs(redis.call('ZRANGE', EXECUTIONS .. part, 0, -1)) do
    redis.call('ZREM', STARTED .. queue, part .. ':' .. execution)
    redis.call('DEL', EXECUTION .. part .. ':' .. execution)
  end
  redis.call('DEL', EXECUTIONS .. part)
end

local function owned(part, execution)
  local job, index = split(part)
  return redis.call('HGET', RECORD .. job, 'execution:' .. index) == execution
    and not withdrawn(part)
end

-- Write a part's end state, once.
local function conclude(queue, job, index, outcome)
  release(queue, job, index)
  if redis.call('HEXISTS', RECORD .. job, 'n') == 0 then return end
  if redis.call('HSETNX', RECORD .. job, 'outcome:' .. index, outcome) == 0 then return end
  redis.call('HINCRBY', RECORD .. job, 'open', -1)
  untell(job, index)
  show(job .. '_' .. index, 'status', outcome)
end

-- Count an ended job for operators, by what all counts together stay few.
local function count_end(job, outcome, cause)
  local model, label, priority =
    unpack(redis.call('HMGET', RECORD .. job, 'model_name', 'label', 'priority'))
  redis.call('HINCRBY', ENDS, cjson.encode({model, label, priority, outcome, cause}), 1)
end

-- End a job, once: what is still open is dropped, everything expires, waiters are told. `cause` is
-- why it failed, in one word.
local function end_job(job, ttl, reason, cause)
  local record = RECORD .. job
  local n, queue, owner, digest =
    unpack(redis.call('HMGET', record, 'n', 'queue', 'owner', 'digest'))
  if not n or redis.call('HSETNX', record, 'ended_at', text(now())) == 0 then return end
  if reason then redis.call('HSET', record, 'error', reason) end
  take_out_of_line(job)
  local steps = tonumber(redis.call('HGET', record, 'steps') or 0)
  local outcome, done = 'finished', 0
  for index = 0, tonumber(n) - 1 do
    local part = job .. '_' .. index
    local state = part_state(job, index)
    if state == 'queued' or state == 'started' then state = 'canceled' end
    if state == 'failed' or (state == 'canceled' and outcome == 'finished') then outcome = state end
    conclude(queue, job, index, state)
    done = done + (state == 'finished' and steps
      or tonumber(redis.call('HGET', record, 'step:' .. index) or 0))
    redis.call('EXPIRE', PART .. part, ttl)
    redis.call('EXPIRE', RESULT .. part, ttl)
  end
  -- What lists say of it: its parts change no more.
  redis.call('HSET', record, 'ended_as', outcome, 'ended_steps', done)
  count_end(job, outcome, cause or '')
  tell(job, outcome, {error = reason})
  redis.call('EXPIRE', record, ttl)
  redis.call('EXPIRE', EVENTS .. job, ttl)
  redis.call('SET', GONE .. job, digest or '', 'EX', ttl + GONE_S)
  redis.call('ZADD', STORED .. owner, 'XX', text(now() + ttl), job)
  redis.call('ZADD', OBJECTS, 'XX', text(now() + ttl + 1), job)
  redis.call('EXPIRE', STORED .. owner, KEPT_S)
  redis.call('EXPIRE', BYTES .. owner, KEPT_S)
  redis.call('PUBLISH', ENDED_CHANNEL, job)
end

local function end_if_complete(job, ttl)
  if redis.call('HGET', RECORD .. job, 'open') == '0' then end_job(job, ttl) end
end

local function fail(queue, job, index, ttl, reason, cause)
  local part = job .. '_' .. index
  conclude(queue, job, index, 'failed')
  show(part, 'exc_info', reason)
  redis.call('ZADD', FAILED .. queue, text(now() + ttl), part)
  end_job(job, ttl, reason, cause)
end

-- End the job of a part that was taken away with RQ's own tools.
local function settle(job, index, ttl)
  if part_state(job, index) == 'canceled' then end_job(job, ttl) end
end

-- Whether a part that was claimed or held waits to be drawn. If it was taken away its job ends; if
-- there is no job, or none with so many images, it expires.
local function to_be_drawn(job, index, ttl)
  local part = job .. '_' .. index
  if index >= tonumber(redis.call('HGET', RECORD .. job, 'n') or 0) then
    redis.call('EXPIRE', PART .. part, ttl)
    return false
  end
  settle(job, index, ttl)
  local state = part_state(job, index)
  show(part, 'status', state) -- whatever RQ's tools wrote there
  return state == 'queued'
end

-- Put a started part back at the front of its line. A part that took its worker with it
-- (`lost`) has a limited number of tries.
local function put_back(queue, part, ttl, lost)
  local job, index = split(part)
  release(queue, job, index)
  if not to_be_drawn(job, index, ttl) then return end
  if lost and redis.call('HINCRBY', PART .. part, 'retries_left', -1) < 0 then
    fail(queue, job, index, ttl, 'lost worker: each worker that drew image ' .. index .. ' died',
      'lost worker')
    return
  end
  redis.call('HSET', PART .. part, 'worker_name', '')
  redis.call('HDEL', RECORD .. job, 'step:' .. index)
  put_in_line(job, part, true)
end
