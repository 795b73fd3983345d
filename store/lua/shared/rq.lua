-- What RQ's own tools are shown, and what somebody did with them. The record of a job decides; these
-- keys are written after it. Of what stands there one thing is believed, and read here alone: that a
-- part was taken away.

local SHOWN_S = 60 -- how long an execution is shown after its last sign of life

local function intermediate(queue) return QUEUE .. queue .. INTERMEDIATE end

-- Whether a part was canceled, stopped or deleted with RQ's own tools.
local function withdrawn(part)
  local status = redis.pcall('HGET', PART .. part, 'status')
  return type(status) ~= 'string' or status == 'canceled' or status == 'stopped'
end

-- Write into a part's hash; false where there is none.
local function show(part, ...)
  if redis.call('TYPE', PART .. part).ok ~= 'hash' then return false end
  redis.call('HSET', PART .. part, ...)
  return true
end

local function show_failed(queue, part, reason, ttl)
  if show(part, 'status', 'failed', 'exc_info', reason) then
    guarded(redis.call, 'ZADD', FAILED .. queue, text(now() + ttl), part)
  end
end

-- RQ's tools would trim executions of a part by the clock of their host, and then not find them.
local function show_started(queue, part, execution, worker, expiry)
  local key, time = EXECUTION .. part .. ':' .. execution, text(now())
  heal('hash', key)
  heal('zset', EXECUTIONS .. part)
  redis.call('ZADD', STARTED .. queue, expiry, part .. ':' .. execution)
  redis.call('ZADD', EXECUTIONS .. part, '+inf', execution)
  redis.call('HSET', key, 'id', execution, 'worker_name', worker,
    'created_at', time, 'last_heartbeat', time)
  redis.call('EXPIRE', key, SHOWN_S)
  redis.call('EXPIRE', EXECUTIONS .. part, SHOWN_S)
  show(part, 'status', 'started', 'worker_name', worker)
end

local function show_alive(queue, part, execution, expiry)
  local key = EXECUTION .. part .. ':' .. execution
  heal('hash', key)
  redis.call('ZADD', STARTED .. queue, 'XX', expiry, part .. ':' .. execution)
  redis.call('HSET', key, 'last_heartbeat', text(now()))
  redis.call('EXPIRE', key, SHOWN_S)
  redis.call('EXPIRE', EXECUTIONS .. part, SHOWN_S)
end

-- An execution owns its part no more.
local function show_released(queue, part, execution)
  guarded(redis.call, 'ZREM', STARTED .. queue, part .. ':' .. execution)
  guarded(redis.call, 'ZREM', EXECUTIONS .. part, execution)
  redis.call('DEL', EXECUTION .. part .. ':' .. execution)
end
