-- What clients are told of a job while it goes on.

local MOST_EVENTS = 4096 -- and four for each image

-- Keep an event for whoever asks later and tell whoever listens now; the event's id.
local function tell(job, kind, data)
  local key, most = EVENTS .. job, MOST_EVENTS + 4 * images_of(job)
  local id = renewing(key, function()
    return redis.call('XADD', key, 'MAXLEN', '~', most, '*',
      'kind', kind, 'data', cjson.encode(data))
  end)
  redis.call('PUBLISH', EVENTS_CHANNEL, job)
  return id
end

-- Forget how far an image was: of that, only the last word is kept.
local function untell(job, index)
  local field = 'progress:' .. index
  local last = read(job, field)
  if last then
    guarded(redis.call, 'XDEL', EVENTS .. job, last)
    redis.call('HDEL', RECORD .. job, field)
  end
end
