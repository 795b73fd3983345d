-- An order (JSON), then the payload of each part
-- -> {'made'}, {'same'}, {'other'}, {'gone'} or {'later', seconds, which limit}
local order = cjson.decode(ARGV[1])
local job, owner, queue, n, limits = order.job, order.owner, order.queue, order.n, order.limits
local record, time = RECORD .. job, now()
local load = n * order.cost -- in patches
local room = RECORD_BYTES + order.given + n * (PART_BYTES + order.room) -- bytes until its images are drawn

-- An id belongs to one body while its job exists, and for GONE_S after that.
heal_queue(queue)
heal('string', GONE .. job)
heal('hash', RATE .. owner, BYTES .. owner)
heal('zset', STORED .. owner, JOBS .. owner, BOOKINGS .. queue, BOOKINGS .. queue .. '.' .. owner)
local digest, made_by = read(job, 'digest', 'made_by')
digest = digest or redis.call('GET', GONE .. job)
if digest then
  if made_by == order.call then return {'made'} end -- the answer was lost
  if digest ~= order.digest then return {'other'} end
  return {redis.call('EXISTS', record) == 1 and 'same' or 'gone'}
end
-- The answer was lost and the Redis client retries the call: the order already has its booking.
local before = redis.call('HMGET', REFUSED .. order.call, 'told', 'limit')
if before[1] then return {'later', before[1], before[2]} end

-- Bookings. A refused order gets a time at which there will be room, and this room is reserved. An
-- order has one booking, in the book of its queue and in that of its owner. Orders with an id are
-- recognized by it. A retry without an id takes a due booking for the same body. It looks the same
-- as a new order with this body, so such a booking is valid only from the time that was given to
-- its order: otherwise a new order could take it first.

local book, own_book = BOOKINGS .. queue, BOOKINGS .. queue .. '.' .. owner
local ticket = load .. '|' .. order.ticket .. (order.named and '' or '#')

-- This order's booking and its due time, if it has one.
local function booking()
  for _, each in ipairs({book, own_book}) do
    redis.call('ZREMRANGEBYSCORE', each, '-inf', text(time - BOOKED_S))
  end
  if order.named then return ticket, tonumber(redis.call('ZSCORE', own_book, ticket)) end
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', own_book, '-inf', text(time))) do
    if string.sub(each, 1, #ticket) == ticket
      and tonumber(string.match(each, '([%d.]+)#%d+$', #ticket + 1) or time + 1) <= time then
      return each, time
    end
  end
end

local function unbook(place)
  for _, each in ipairs({book, own_book}) do redis.call('ZREM', each, place) end
end

-- Reserve room from `due` on for this order. The client was asked to wait until `told`.
local function put_in_book(due, told)
  local place = ticket
  if not order.named then
    place = place .. text(told) .. '#' .. redis.call('ZCARD', own_book)
  end
  for _, each in ipairs({book, own_book}) do
    redis.call('ZADD', each, text(due), place)
    local last = redis.call('ZREVRANGE', each, 0, 0, 'WITHSCORES')
    redis.call('EXPIRE', each, math.ceil(tonumber(last[2]) - time + 2 * BOOKED_S))
  end
end

local place, due = booking()
local early = due and due > time + EARLY_S -- then the booking does not help

-- Limits. Each returns the time from which it has room for the order; `time` or earlier means now.

-- Room in a queue of `count` images, each counted as the patches that it costs. For new orders, bookings take up room too, up to the time when
-- the images that wait now are drawn. An order with more images than the limit has room when the
-- queue is empty.
local function queue_free(scope, count, limit, rate)
  if not limit then return time end
  local need, taken = math.min(load, limit), 0
  if due and not early then
    if count == 0 or count + need <= limit * OVERBOOKING then return time end
  else
    local left = limit - count - need -- each booking is for at least one image
    local near = rate and left >= 0 and redis.call('ZRANGEBYSCORE', scope, '-inf',
      text(time + count / rate), 'LIMIT', 0, left + 1)
    for _, each in ipairs(near or {}) do
      if each ~= place then
        taken = taken + math.min(limit, tonumber(string.match(each, '^(%d+)|') or 0))
      end
    end
    if count + taken + need <= limit then return time end
  end
  if not rate then return time + UNKNOWN_S end
  return time + math.max(1, (count + taken + need - limit) / rate)
end

-- Requests per minute. A refused order has already paid for its retry, for any reason of refusal.
local tokens = limits.requests_per_minute
if tokens then
  local left, at = unpack(redis.call('HMGET', RATE .. owner, 'tokens', 'at'))
  left, at = tonumber(left), tonumber(at)
  if left and at then
    local passed = math.max(0, time - at) -- the clock may have been set back
    tokens = math.min(tokens, left + passed * tokens / 60)
  end
end

local function request_free()
  local paid = due and 1 or 0
  if not tokens or tokens + paid >= 1 or due and not early then return time end
  return time + (1 - tokens) * 60 / limits.requests_per_minute
end

-- Bytes of results and records, including reserved ones. Updates the count of some expired jobs:
-- the id of such a job is kept for a while and counts. `drawn_at` is the earliest time when the
-- images of open jobs may be drawn. They then use less than was reserved for them.
local function bytes_free(drawn_at)
  local stored, bytes, limit = STORED .. owner, BYTES .. owner, limits.stored_bytes
  local old = redis.call('ZRANGEBYSCORE', stored, '-inf', text(time), 'LIMIT', 0, TIDIED)
  for _, each in ipairs(old) do
    local left = redis.call('EXISTS', RECORD .. each) == 0 and redis.call('TTL', GONE .. each) or 0
    if left > 0 then
      recount_bytes(owner, each, function() return GONE_BYTES end)
      redis.call('ZADD', stored, 'XX', text(time + left), each)
    else
      forget_bytes(owner, each)
    end
  end
  local sum = tonumber(redis.call('HGET', bytes, 'sum') or 0)
  local most = limit and limit - math.min(room, limit)
  if not limit or sum <= most then return time end
  local next_ones = redis.call('ZRANGE', stored, 0, TIDIED - 1, 'WITHSCORES')
  local expiry = time + order.ttl
  for at = 1, #next_ones, 2 do
    expiry = tonumber(next_ones[at + 1]) or math.huge
    sum = sum - tonumber(redis.call('HGET', bytes, next_ones[at]) or 0)
    if sum <= most then break end
  end
  if redis.call('ZCOUNT', stored, '+inf', '+inf') > 0 then expiry = math.min(expiry, drawn_at) end
  return math.min(expiry, time + order.ttl)
end

local own, all = waiting(queue, owner), waiting(queue)
local rate = order.rate ~= cjson.null and order.rate * CAUTION or nil
local shares = {[owner] = weight_of(owner)}
for _, class in ipairs(PRIORITIES) do
  for _, each in ipairs(owners_of(queue, class)) do shares[each] = weight_of(each) end
end
local weights, owners = 0, 0
for _, weight in pairs(shares) do
  weights, owners = weights + weight, owners + 1
end
local own_rate = rate and rate * shares[owner] / weights

local free = {
  requests = request_free(),
  stored = renewing(BYTES .. owner, function()
    return bytes_free(time + math.max(UNKNOWN_S, own_rate and own / own_rate or 0))
  end),
  waiting = queue_free(own_book, own, limits.waiting_images, own_rate),
  -- A key with few waiting images is accepted even if others have filled the queue.
  queue = own + load <= limits.queue / (2 * owners) and time
    or queue_free(book, all, limits.queue, rate),
}
local free_at, limit = time, nil
for name, at in pairs(free) do
  if at > free_at then free_at, limit = at, name end
end

local function pay()
  if due or not tokens then return end
  redis.call('HSET', RATE .. owner, 'tokens', text(tokens - 1), 'at', text(time))
  redis.call('EXPIRE', RATE .. owner, 180)
end

if limit and early then return {'later', text(due - time), 'booked'} end
if limit then
  if tokens and tokens < -limits.requests_per_minute then
    return {'later', text(free_at - time), limit} -- it may book at most a minute ahead
  end
  pay()
  if limit == 'stored' then return {'later', text(free_at - time), limit} end
  if own_rate then
    -- After the owner's own bookings, at its own share, so that it cannot book the room of others.
    local last = redis.call('ZREVRANGE', own_book, 0, 0, 'WITHSCORES')
    free_at = math.max(free_at, tonumber(last[2] or 0) + load / own_rate)
  end
  local told = math.max(1, math.ceil(free_at - time)) -- whole seconds, as in HTTP's Retry-After
  if due then unbook(place) end
  if redis.call('ZCARD', own_book) < MOST_BOOKINGS then put_in_book(free_at, time + told) end
  redis.call('HSET', REFUSED .. order.call, 'told', told, 'limit', limit)
  redis.call('EXPIRE', REFUSED .. order.call, REFUSED_S)
  return {'later', told, limit}
end

pay()
if due then unbook(place) end

local function flat(fields)
  local list = {}
  for field, value in pairs(fields) do
    list[#list + 1] = field
    list[#list + 1] = value
  end
  return unpack(list)
end

write(job, 'owner', owner, 'queue', queue, 'priority', order.priority,
  'n', n, 'open', n, 'cost', order.cost, 'room', order.room, 'digest', order.digest, 'made_by', order.call,
  'created_at', text(time), flat(order.record))
for index = 0, n - 1 do
  local part = part_of(job, index)
  heal('hash', PART .. part)
  redis.call('HSET', PART .. part, 'data', ARGV[index + 2],
    'description', 'image ' .. index .. ' of ' .. job, flat(order.part))
  redis.call('RPUSH', list_of(queue, order.priority, owner), part)
end
wait_in_line(queue, order.priority, owner, 0)
count_extra(queue, order.priority, owner, load - n)
for _, each in ipairs(redis.call('ZRANGE', JOBS .. owner, 0, TIDIED - 1)) do
  if redis.call('EXISTS', RECORD .. each) == 0 then redis.call('ZREM', JOBS .. owner, each) end
end
redis.call('ZADD', JOBS .. owner, text(time), job)
redis.call('EXPIRE', JOBS .. owner, KEPT_S)
count_bytes(owner, job, room)
add_event(job, 'queued', {n = n})
return {'made'}
