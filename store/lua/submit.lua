-- An order (JSON), then the payload of each part
-- -> {'made'}, {'same'}, {'other'}, {'gone'} or {'later', seconds, which limit}
local order = cjson.decode(ARGV[1])
local job, owner, queue, n = order.job, order.owner, order.queue, order.n
local record, time = RECORD .. job, now()

-- An id stands for one body: for as long as its job is kept, and a while after.
local digest = redis.call('HGET', record, 'digest') or redis.call('GET', GONE .. job)
if digest then
  if digest ~= order.digest then return {'other'} end
  return {redis.call('EXISTS', record) == 1 and 'same' or 'gone'}
end

-- Bookings: who is sent away gets a time at which there will be room, and that room is kept. Those
-- who come anew find it taken, but only as far ahead as what waits now can still stand in the way.

local function booked(book, rate, limit)
  redis.call('ZREMRANGEBYSCORE', book, '-inf', text(time - GRACE_S))
  local count = 0
  local near = redis.call('ZRANGEBYSCORE', book, '-inf', text(time + limit / rate))
  for _, member in ipairs(near) do count = count + tonumber(string.match(member, '^(%d+)|')) end
  return count
end

-- Seconds until there is room for this order in a scope where `count` images wait; nil: now.
local function seconds_to_room(scope, count, limit, rate)
  local book, name = BOOKINGS .. scope, n .. '|' .. order.ticket
  if not rate then return count + n > limit and UNKNOWN_S or nil end
  local taken = booked(book, rate, limit)
  local due = tonumber(redis.call('ZSCORE', book, name))
  if due and due > time + 0.5 then return due - time end
  if due and count + n <= limit * SPARE then return nil end
  if not due and count + taken + n <= limit then return nil end
  local last = redis.call('ZREVRANGE', book, 0, 0, 'WITHSCORES')
  local free_at = time + math.max(0, count + n - limit) / rate
  if not due then free_at = math.max(free_at, tonumber(last[2] or 0)) + n / rate end
  if redis.call('ZCARD', book) < MOST_BOOKINGS then
    redis.call('ZADD', book, text(free_at), name)
  end
  return free_at - time
end

local function tokens_left()
  local tokens, at = unpack(redis.call('HMGET', RATE .. owner, 'tokens', 'at'))
  local limit = order.limits.requests_per_minute
  if not tokens then return limit end
  return math.min(limit, tonumber(tokens) + (time - tonumber(at)) * limit / 60)
end

-- Bytes that an owner's results take, and the seconds until enough of them have expired.
local function seconds_to_store()
  local stored, bytes = STORED .. owner, BYTES .. owner
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', stored, '-inf', text(time))) do
    redis.call('ZREM', stored, old)
    redis.call('HDEL', bytes, old)
  end
  local sum, all = 0, redis.call('HGETALL', bytes)
  local of_job = {}
  for at = 1, #all, 2 do
    of_job[all[at]] = tonumber(all[at + 1])
    sum = sum + of_job[all[at]]
  end
  if sum < order.limits.stored_bytes then return nil end
  local line = redis.call('ZRANGE', stored, 0, -1, 'WITHSCORES')
  for at = 1, #line, 2 do
    sum = sum - (of_job[line[at]] or 0)
    local expiry = tonumber(line[at + 1])
    if sum < order.limits.stored_bytes and expiry and expiry < math.huge then
      return expiry - time
    end
  end
  return order.ttl
end

local tokens = tokens_left()
if tokens < 1 then
  return {'later', text((1 - tokens) * 60 / order.limits.requests_per_minute), 'requests'}
end
local to_store = seconds_to_store()
if to_store then return {'later', text(to_store), 'stored'} end

local all, own = waiting(queue), waiting(queue, owner)
local rate = order.rate ~= cjson.null and order.rate * CAUTION or nil
local line = {}
for _, class in ipairs({'interactive', 'bulk'}) do
  for _, each in ipairs(redis.call('ZRANGE', FAIR .. queue .. '.' .. class, 0, -1)) do
    line[each] = weight_of(each)
  end
end
line[owner] = weight_of(owner)
local weights, keys_waiting = 0, 0
for _, weight in pairs(line) do
  weights = weights + weight
  keys_waiting = keys_waiting + 1
end
local own_rate = rate and rate * line[owner] / weights
local own_wait = seconds_to_room(queue .. '.' .. owner, own, order.limits.waiting_images, own_rate)
if own_wait then return {'later', text(own_wait), 'waiting'} end
-- A key with little waiting is let in though others have filled the queue.
if own + n > order.limits.queue / (2 * keys_waiting) then
  local wait = seconds_to_room(queue, all, order.limits.queue, rate)
  if wait then return {'later', text(wait), 'queue'} end
end

redis.call('ZREM', BOOKINGS .. queue .. '.' .. owner, n .. '|' .. order.ticket)
redis.call('ZREM', BOOKINGS .. queue, n .. '|' .. order.ticket)
redis.call('HSET', RATE .. owner, 'tokens', text(tokens - 1), 'at', text(time))
redis.call('EXPIRE', RATE .. owner, 120)
redis.call('HSET', record, 'owner', owner, 'queue', queue, 'priority', order.priority,
  'n', n, 'open', n, 'digest', order.digest, 'created_at', text(time))
for field, value in pairs(order.record) do redis.call('HSET', record, field, value) end
for index = 0, n - 1 do
  local part = PART .. job .. '_' .. index
  redis.call('HSET', part, 'data', ARGV[index + 2], 'description', 'image ' .. index .. ' of ' .. job)
  for field, value in pairs(order.part) do redis.call('HSET', part, field, value) end
  redis.call('RPUSH', list_of(queue, order.priority, owner), job .. '_' .. index)
end
wait_in_line(queue, order.priority, owner, 0)
redis.call('SADD', QUEUES, QUEUE .. queue, list_of(queue, order.priority, owner))
redis.call('ZADD', JOBS .. owner, text(time), job)
tell(job, 'queued', {n = n})
return {'made'}
