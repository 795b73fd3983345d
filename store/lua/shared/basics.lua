-- Times, ids of parts, and fields of a job's record.

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

local function read(job, ...) return unpack(redis.call('HMGET', RECORD .. job, ...)) end

local function write(job, ...) redis.call('HSET', RECORD .. job, ...) end
