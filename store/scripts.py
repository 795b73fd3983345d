"""The Lua scripts: every change of a part's state is one of them, hence atomic.

All times are seconds from Redis TIME, so that clocks of two hosts are never compared. A part is
owned by the execution that `start` registered in RQ's started registry; whoever is not registered
there any more is refused. End states are written to the record once ("outcome:<index>") and never
change, whatever RQ's own tools do to the RQ hash later.
"""

from __future__ import annotations

from store import keys

PRELUDE = (
    f"""
local RECORD, RESULT, CLAIMS = '{keys.RECORD}', '{keys.RESULT}', '{keys.CLAIMS}'
local QUEUE, INTERMEDIATE = '{keys.QUEUE}', '{keys.INTERMEDIATE}'
local PART, STARTED = '{keys.PART}', '{keys.STARTED}'
local FINISHED, FAILED = '{keys.FINISHED}', '{keys.FAILED}'
local EXECUTION, EXECUTIONS = '{keys.EXECUTION}', '{keys.EXECUTIONS}'
local QUEUES, ENDED_CHANNEL = '{keys.QUEUES}', '{keys.ENDED_CHANNEL}'
"""
    + """
local WAITING = {queued = true, created = true, deferred = true, scheduled = true}

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

-- The status in RQ's hash; nil when there is no such hash.
local function rq_status(part)
  local value = redis.pcall('HGET', PART .. part, 'status')
  return type(value) == 'string' and value or nil
end

local function part_state(job, index)
  local outcome = redis.call('HGET', RECORD .. job, 'outcome:' .. index)
  if outcome then return outcome end
  local status = rq_status(job .. '_' .. index)
  if WAITING[status] then return 'queued' end
  if status == 'started' or status == 'failed' then return status end
  return 'canceled'
end

-- Forget every execution of a part: from here on no holder of it can finish it.
local function release(queue, part)
  for _, execution in ipairs(redis.call('ZRANGE', EXECUTIONS .. part, 0, -1)) do
    redis.call('ZREM', STARTED .. queue, part .. ':' .. execution)
    redis.call('DEL', EXECUTION .. part .. ':' .. execution)
  end
  redis.call('DEL', EXECUTIONS .. part)
end

local function owned(queue, part, execution)
  return redis.call('ZSCORE', STARTED .. queue, part .. ':' .. execution)
    and rq_status(part) == 'started'
end

-- Write a part's end state, once.
local function conclude(queue, job, index, outcome)
  local part = job .. '_' .. index
  release(queue, part)
  if redis.call('HEXISTS', RECORD .. job, 'n') == 0 then return end
  if redis.call('HSETNX', RECORD .. job, 'outcome:' .. index, outcome) == 0 then return end
  redis.call('LREM', QUEUE .. queue, 0, part)
  if rq_status(part) then redis.call('HSET', PART .. part, 'status', outcome) end
end

-- End a job, once: what is still open is dropped, everything expires, waiters are told.
local function end_job(job, ttl, reason)
  local record = RECORD .. job
  local n, queue = unpack(redis.call('HMGET', record, 'n', 'queue'))
  if not n or redis.call('HSETNX', record, 'ended_at', text(now())) == 0 then return end
  if reason then redis.call('HSET', record, 'error', reason) end
  for index = 0, tonumber(n) - 1 do
    local part = job .. '_' .. index
    local state = part_state(job, index)
    if state == 'queued' or state == 'started' then state = 'canceled' end
    conclude(queue, job, index, state)
    redis.call('EXPIRE', PART .. part, ttl)
    redis.call('EXPIRE', RESULT .. part, ttl)
  end
  redis.call('EXPIRE', record, ttl)
  redis.call('PUBLISH', ENDED_CHANNEL, job)
end

local function end_if_complete(job, ttl)
  local n = tonumber(redis.call('HGET', RECORD .. job, 'n') or 0)
  for index = 0, n - 1 do
    local state = part_state(job, index)
    if state == 'queued' or state == 'started' then return end
  end
  end_job(job, ttl)
end

local function fail(queue, job, index, ttl, reason)
  local part = job .. '_' .. index
  conclude(queue, job, index, 'failed')
  if rq_status(part) then redis.call('HSET', PART .. part, 'exc_info', reason) end
  redis.call('ZADD', FAILED .. queue, text(now() + ttl), part)
  end_job(job, ttl, reason)
end

-- A holder that owns its part no more: if that is because somebody canceled or deleted the part
-- with RQ's own tools, the job must still end.
local function settle(job, index, ttl)
  if part_state(job, index) == 'canceled' then end_job(job, ttl) end
end

-- Put a started part back at the front of its queue. A part that took its worker with it
-- (`lost`) has a limited number of tries.
local function put_back(queue, part, ttl, lost)
  local job, index = split(part)
  release(queue, part)
  if not job then return end
  if rq_status(part) ~= 'started' then return settle(job, index, ttl) end
  if lost and redis.call('HINCRBY', PART .. part, 'retries_left', -1) < 0 then
    fail(queue, job, index, ttl, 'lost worker: each worker that drew image ' .. index .. ' died')
    return
  end
  redis.call('HSET', PART .. part, 'status', 'queued', 'worker_name', '')
  redis.call('LPUSH', QUEUE .. queue, part)
end
"""
)

# ARGV queue, count, lease -> {{part, {field, value, ...}}, ...}
CLAIM = (
    PRELUDE
    + """
local queue, found = ARGV[1], {}
for _ = 1, tonumber(ARGV[2]) do
  local part = redis.call('LMOVE', QUEUE .. queue, intermediate(queue), 'LEFT', 'RIGHT')
  if not part then break end
  redis.call('ZADD', CLAIMS .. queue, text(now() + tonumber(ARGV[3])), part)
  local fields = redis.pcall('HGETALL', PART .. part)
  found[#found + 1] = {part, fields.err and {} or fields}
end
return found
"""
)

# ARGV queue, part, execution, worker, lease -> {tries left, queue_s}, or nil when not to be drawn
START = (
    PRELUDE
    + """
local queue, part, execution, worker, lease = unpack(ARGV)
local job, index = split(part)
local record = RECORD .. job
redis.call('ZREM', CLAIMS .. queue, part)
if redis.call('LREM', intermediate(queue), 1, part) == 0 then return nil end
if rq_status(part) ~= 'queued' then return nil end
if redis.call('EXISTS', record) == 0 then
  redis.call('DEL', PART .. part)
  return nil
end
local outcome = redis.call('HGET', record, 'outcome:' .. index)
if outcome then
  redis.call('HSET', PART .. part, 'status', outcome)
  return nil
end
local time = now()
local expiry = text(time + tonumber(lease))
release(queue, part)
redis.call('ZADD', STARTED .. queue, expiry, part .. ':' .. execution)
redis.call('ZADD', EXECUTIONS .. part, expiry, execution)
redis.call('HSET', EXECUTION .. part .. ':' .. execution, 'id', execution, 'worker_name', worker,
  'created_at', text(time), 'last_heartbeat', text(time))
redis.call('HSET', PART .. part, 'status', 'started', 'worker_name', worker)
redis.call('HSETNX', record, 'started_at', text(time))
local queue_s = text(time - tonumber(redis.call('HGET', record, 'created_at')))
redis.call('HSET', record, 'queue_s:' .. index, queue_s)
return {redis.call('HGET', PART .. part, 'retries_left') or '0', queue_s}
"""
)

# ARGV queue, part, ttl, reason. The hash may hold anything, so nothing in it is trusted.
REFUSE = (
    PRELUDE
    + """
local queue, part, ttl, reason = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local job, index = split(part)
redis.call('ZREM', CLAIMS .. queue, part)
redis.call('LREM', intermediate(queue), 0, part)
if redis.call('TYPE', PART .. part).ok == 'hash' then
  redis.call('HSET', PART .. part, 'status', 'failed', 'exc_info', reason)
  redis.call('ZADD', FAILED .. queue, text(now() + ttl), part)
end
redis.call('EXPIRE', PART .. part, ttl)
if job and redis.call('HGET', RECORD .. job, 'queue') == queue
  and index < tonumber(redis.call('HGET', RECORD .. job, 'n')) then
  fail(queue, job, index, ttl, reason)
end
"""
)

# ARGV queue, lease, ttl, part, execution, part, execution, ... -> the executions that own no more
BEAT = (
    PRELUDE
    + """
local queue, ttl, lost = ARGV[1], tonumber(ARGV[3]), {}
local expiry = text(now() + tonumber(ARGV[2]))
for at = 4, #ARGV, 2 do
  local part, execution = ARGV[at], ARGV[at + 1]
  if owned(queue, part, execution) then
    redis.call('ZADD', STARTED .. queue, 'XX', expiry, part .. ':' .. execution)
    redis.call('HSET', EXECUTION .. part .. ':' .. execution, 'last_heartbeat', text(now()))
  else
    local job, index = split(part)
    settle(job, index, ttl)
    lost[#lost + 1] = execution
  end
end
return lost
"""
)

# ARGV queue, part, execution, ttl, decode_s, name, bytes, ... -> total_s, or nil when refused
FINISH = (
    PRELUDE
    + """
local queue, part, execution, ttl, decode_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local job, index = split(part)
local record = RECORD .. job
if not owned(queue, part, execution) or redis.call('EXISTS', record) == 0 then
  settle(job, index, ttl)
  return nil
end
for at = 6, #ARGV, 2 do redis.call('HSET', RESULT .. part, ARGV[at], ARGV[at + 1]) end
local total_s = text(now() - tonumber(redis.call('HGET', record, 'created_at')))
redis.call('HSET', record, 'decode_s:' .. index, decode_s, 'total_s:' .. index, total_s)
conclude(queue, job, index, 'finished')
redis.call('ZADD', FINISHED .. queue, text(now() + ttl), part)
end_if_complete(job, ttl)
return total_s
"""
)

# ARGV queue, part, execution, ttl, reason -> 1, or 0 when refused
FAIL = (
    PRELUDE
    + """
local queue, part, execution, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local job, index = split(part)
if not owned(queue, part, execution) then
  settle(job, index, ttl)
  return 0
end
fail(queue, job, index, ttl, ARGV[5])
return 1
"""
)

# ARGV queue, part, execution, ttl, '1' when the part may have broken its worker
PUT_BACK = (
    PRELUDE
    + """
local queue, part, execution, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if owned(queue, part, execution) then put_back(queue, part, ttl, ARGV[5] == '1') end
"""
)

# ARGV queue, lease, ttl -> how many abandoned parts were found. Two sweeps at once are one after
# the other here, so a part is never queued twice and no lock can be lost or left behind.
SWEEP = (
    PRELUDE
    + """
local queue, lease, ttl, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 0
local time = now()
for _, member in ipairs(redis.call('ZRANGEBYSCORE', STARTED .. queue, '-inf', text(time))) do
  local part = string.match(member, '^(.*):[^:]*$') or member
  redis.call('ZREM', STARTED .. queue, member)
  redis.call('DEL', EXECUTION .. member)
  put_back(queue, part, ttl, true)
  count = count + 1
end
for _, part in ipairs(redis.call('LRANGE', intermediate(queue), 0, -1)) do
  local expiry = redis.call('ZSCORE', CLAIMS .. queue, part)
  if not expiry then
    redis.call('ZADD', CLAIMS .. queue, text(time + lease), part)
  elseif tonumber(expiry) < time then
    redis.call('LREM', intermediate(queue), 0, part)
    redis.call('ZREM', CLAIMS .. queue, part)
    if rq_status(part) == 'queued' then redis.call('LPUSH', QUEUE .. queue, part) end
    count = count + 1
  end
end
redis.call('ZREMRANGEBYSCORE', FINISHED .. queue, '-inf', text(time))
redis.call('ZREMRANGEBYSCORE', FAILED .. queue, '-inf', text(time))
return count
"""
)

# ARGV job -> {{field, value, ...}, {state, ...}}, or nil
SNAPSHOT = (
    PRELUDE
    + """
local fields = redis.call('HGETALL', RECORD .. ARGV[1])
if #fields == 0 then return nil end
local states = {}
for index = 0, tonumber(redis.call('HGET', RECORD .. ARGV[1], 'n')) - 1 do
  states[index + 1] = part_state(ARGV[1], index)
end
return {fields, states}
"""
)

# ARGV job, ttl -> 1, or 0 when there is nothing to cancel
CANCEL = (
    PRELUDE
    + """
local record = RECORD .. ARGV[1]
if redis.call('EXISTS', record) == 0 or redis.call('HEXISTS', record, 'ended_at') == 1 then
  return 0
end
end_job(ARGV[1], tonumber(ARGV[2]))
return 1
"""
)
