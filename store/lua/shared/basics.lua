-- Times, ids of parts, fields of a job's record, and what to do where something cannot be read.

-- What Redis and Lua say of a key of another type, or of a value that is no number. All else, say
-- that Redis is full, is no damage.
local DAMAGE = {
  'WRONGTYPE', 'attempt to', 'bad argument', 'not an integer', 'not a float', 'not a valid float',
  'Invalid stream ID',
}
local damaged = 0 -- records that could not be read, as this script's answer says

-- Do something about one record. What is damaged costs that alone: nil then, and true.
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

-- Do something with a key on which nothing else depends: where it is damaged it is begun anew.
local function renewing(key, act)
  local answer, broken = guarded(act)
  if not broken then return answer end
  redis.call('DEL', key)
  return act()
end

-- Delete keys that hold something else than they must.
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

-- The job and the index of a part; of anything else, a job that nobody has.
local function split(part)
  local job, index = string.match(part, '^(.+)_(%d+)$')
  index = tonumber(index)
  if not job or part_of(job, index) ~= part then return '', 0 end
  return job, index
end

-- Fields of a job's record. One of another type is deleted: there is no such job then.
local function read(job, ...)
  local values = redis.pcall('HMGET', RECORD .. job, ...)
  if not values.err then return unpack(values) end
  heal('hash', RECORD .. job)
  return unpack(redis.call('HMGET', RECORD .. job, ...))
end

-- How many images a job has whose record says `n`; 0 where there is none that can be read.
local function images(n)
  n = tonumber(n or 0)
  return n and n >= 1 and n <= MAX_IMAGES and n % 1 == 0 and n or 0
end

local function images_of(job) return images(read(job, 'n')) end

local function write(job, ...) redis.call('HSET', RECORD .. job, ...) end
