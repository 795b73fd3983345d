-- RQ's keys, written for RQ's own tools. The record of a job has the state; these keys follow it.
-- Only one thing is read from them, and only in this file: whether RQ's tools have withdrawn a
-- part.

local SHOWN_S = 60 -- how long an execution is shown after its last heartbeat

local function intermediate(queue) return QUEUE .. queue .. INTERMEDIATE end

-- Whether a part was canceled, stopped or deleted with RQ's own tools.
local function withdrawn(part)
  local status = redis.pcall('HGET', PART .. part, 'status')
  return type(status) ~= 'string' or status == 'canceled' or status == 'stopped'
end

-- Write fields of a part's hash; false when there is no hash.
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

-- The score is +inf: RQ's tools would otherwise remove executions by the clock of their host.
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

-- Remove an execution that no longer owns its part.
local function show_released(queue, part, execution)
  guarded(redis.call, 'ZREM', STARTED .. queue, part .. ':' .. execution)
  guarded(redis.call, 'ZREM', EXECUTIONS .. part, execution)
  redis.call('DEL', EXECUTION .. part .. ':' .. execution)
end
