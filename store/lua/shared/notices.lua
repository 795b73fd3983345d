-- Which jobs' ends are still to be sent to a URL. Each owner has a list of its own, by when a try is
-- due, and takes turns with the others: an owner whose receivers hang keeps nobody else waiting.

-- Give an owner its turn at `at`, or when its next try is due; no turn where it has nothing to send.
local function give_turn(owner, at)
  local first = redis.call('ZRANGE', NOTICES .. owner, 0, 0, 'WITHSCORES')
  if #first == 0 then
    redis.call('ZREM', NOTIFIERS, owner)
  else
    redis.call('ZADD', NOTIFIERS, text(math.max(at, tonumber(first[2]))), owner)
  end
end

-- Have the end of a job sent at a time.
local function notify_at(owner, job, at)
  heal('zset', NOTICES .. owner, NOTIFIERS)
  redis.call('ZADD', NOTICES .. owner, text(at), job)
  redis.call('EXPIRE', NOTICES .. owner, KEPT_S)
  give_turn(owner, at)
end
