-- Webhooks that are still to be sent. Each owner has its own list, by when the next try is due,
-- and owners take turns: an owner whose receivers hang does not delay the others.

-- Give an owner its next turn at `at`, or when its next try is due if that is later. An owner with
-- nothing to send gets no turn.
local function give_turn(owner, at)
  local first = redis.call('ZRANGE', NOTICES .. owner, 0, 0, 'WITHSCORES')
  if #first == 0 then
    redis.call('ZREM', NOTIFIERS, owner)
  else
    redis.call('ZADD', NOTIFIERS, text(math.max(at, tonumber(first[2]))), owner)
  end
end

-- Schedule the webhook of a job at time `at`.
local function notify_at(owner, job, at)
  heal('zset', NOTICES .. owner, NOTIFIERS)
  redis.call('ZADD', NOTICES .. owner, text(at), job)
  redis.call('EXPIRE', NOTICES .. owner, KEPT_S)
  give_turn(owner, at)
end
