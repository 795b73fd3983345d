-- Times, ids of parts, and fields of a job's record.

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function text(seconds) return string.format('%.6f', seconds) end

local function part_of(job, index) return job .. '_' .. index end

local function split(part)
  local job, index = string.match(part, '^(.+)_(%d+)$')
  return job, tonumber(index)
end

local function read(job, ...) return unpack(redis.call('HMGET', RECORD .. job, ...)) end

local function write(job, ...) redis.call('HSET', RECORD .. job, ...) end
