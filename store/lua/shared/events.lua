-- What clients are told of a job while it goes on.

local MOST_EVENTS = 4096 -- and four for each image

-- Keep an event for whoever asks later and tell whoever listens now; the event's id.
local function tell(job, kind, data)
  local most = MOST_EVENTS + 4 * tonumber(read(job, 'n') or 0)
  local id = redis.call('XADD', EVENTS .. job, 'MAXLEN', '~', most, '*',
    'kind', kind, 'data', cjson.encode(data))
  redis.call('PUBLISH', EVENTS_CHANNEL, job)
  return id
end

-- Forget how far an image was: of that, only the last word is kept.
local function untell(job, index)
  local field = 'progress:' .. index
  local last = read(job, field)
  if last then
    redis.call('XDEL', EVENTS .. job, last)
    redis.call('HDEL', RECORD .. job, field)
  end
end
