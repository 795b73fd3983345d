-- Times, part ids, fields of a job's record, and the handling of unreadable data.

-- Error texts of Redis and Lua for a key of the wrong type or a value that is not a number. Other
-- errors, for example a full Redis, are not damage.
local DAMAGE = {
  'WRONGTYPE', 'attempt to', 'bad argument', 'not an integer', 'not a float', 'not a valid float',
  'Invalid stream ID',
}
local damaged = 0 -- number of unreadable records, part of each script's answer

-- Call `act` for one record. Returns its answer; nil and true when the data is damaged. So damage
-- affects this record only.
local function guarded(act, ...)
  local fine, answer = pcall(act, ...)
  if fine then return answer end
  local said = type(answer) == 'table' and answer.err or tostring(answer)
  for _, sign in ipairs(DAMAGE) do
    if string.find(said, sign, 1, true) then
      damaged = damaged + 1
      return nil, true
    end
  end
  error(answer, 0)
end

local function unreadable() error('WRONGTYPE', 0) end

-- Call `act` on a key that nothing else depends on. If the key is damaged, delete it and try
-- again.
local function renewing(key, act)
  local answer, broken = guarded(act)
  if not broken then return answer end
  redis.call('DEL', key)
  return act()
end

-- Delete keys of the wrong type.
local function heal(kind, ...)
  for _, key in ipairs({...}) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      damaged = damaged + 1
      redis.call('DEL', key)
    end
  end
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function text(seconds) return string.format('%.6f', seconds) end

local function part_of(job, index) return job .. '_' .. index end

-- The job and the index of a part id; '' and 0 for anything else.
local function split(part)
  local job, index = string.match(part, '^(.+)_(%d+)$')
  index = tonumber(index)
  if not job or part_of(job, index) ~= part then return '', 0 end
  return job, index
end

-- Fields of a job's record. A record of the wrong type is deleted: then there is no such job.
local function read(job, ...)
  local values = redis.pcall('HMGET', RECORD .. job, ...)
  if not values.err then return unpack(values) end
  heal('hash', RECORD .. job)
  return unpack(redis.call('HMGET', RECORD .. job, ...))
end

-- The number of images from a record's field `n`; 0 when it is missing or invalid.
local function images(n)
  n = tonumber(n or 0)
  return n and n >= 1 and n <= MAX_IMAGES and n % 1 == 0 and n or 0
end

local function images_of(job) return images(read(job, 'n')) end

-- How many patches each image of a job costs: 1 unless it is a large one.
local function cost_of(job)
  local cost = images(read(job, 'cost'))
  return cost > 0 and cost or 1
end

local function write(job, ...) redis.call('HSET', RECORD .. job, ...) end
