-- Events of a job, for its clients.

local MOST_EVENTS = 4096 -- plus four for each image

-- Store an event for later readers and notify current subscribers. Returns the event's id.
local function add_event(job, kind, data)
  local key, most = EVENTS .. job, MOST_EVENTS + 4 * images_of(job)
  local id = renewing(key, function()
    return redis.call('XADD', key, 'MAXLEN', '~', most, '*',
      'kind', kind, 'data', cjson.encode(data))
  end)
  redis.call('PUBLISH', EVENTS_CHANNEL, job)
  return id
end

-- Delete an image's last progress event: only the latest one is kept.
local function drop_progress(job, index)
  local field = 'progress:' .. index
  local last = read(job, field)
  if last then
    guarded(redis.call, 'XDEL', EVENTS .. job, last)
    redis.call('HDEL', RECORD .. job, field)
  end
end
