-- The waiting parts and their order: start-time fair queueing.
--
-- Each queue has two classes, and each class has a list of waiting parts per owner. An owner's tag
-- is its place on a virtual clock. It grows by cost / weight with each image that the owner gets: a
-- patch costs 1, a large image as many patches as have its decode steps. The owner with the lowest
-- tag is next. A new owner starts at the current clock: so no owner can save up turns, and none must
-- wait until earlier owners have caught up.

local BULK_TURN = 8 -- while both classes wait, one of this many claims takes a bulk part
local INTERACTIVE, BULK = unpack(PRIORITIES)

local function list_of(queue, class, owner) return QUEUE .. queue .. '.' .. class .. '.' .. owner end

local function fair_of(queue, class) return FAIR .. queue .. '.' .. class end

-- The owners with waiting parts of a class, the next one first.
local function owners_of(queue, class) return redis.call('ZRANGE', fair_of(queue, class), 0, -1) end

-- All lists of a queue with waiting parts.
local function lists_of(queue)
  local lists = {}
  for _, class in ipairs(PRIORITIES) do
    for _, owner in ipairs(owners_of(queue, class)) do
      lists[#lists + 1] = list_of(queue, class, owner)
    end
  end
  return lists
end

local function weight_of(owner)
  local weight = tonumber(redis.call('HGET', WEIGHTS, owner) or 1)
  return weight and weight > 0 and weight or 1
end

-- Count what waiting images of an owner cost beyond one patch each.
local function count_extra(queue, class, owner, change)
  if change == 0 then return end
  renewing(EXTRA .. queue, function()
    redis.call('HINCRBY', EXTRA .. queue, class .. ':' .. owner, change)
  end)
end

local function clock_field(class, owner) return class .. ':' .. (owner or '') end

-- Record that an owner has waiting parts, and tell idle workers. `turns` moves its tag; it is -cost
-- for a part that was claimed and is put back. A new owner starts where the others are.
local function wait_in_line(queue, class, owner, turns)
  local fair, clock = fair_of(queue, class), CLOCK .. queue
  local tag = tonumber(redis.call('ZSCORE', fair, owner))
  if not tag then
    local last = tonumber(redis.call('HGET', clock, clock_field(class, owner)) or 0)
    local present = tonumber(redis.call('HGET', clock, clock_field(class)) or 0)
    local least = redis.call('ZRANGE', fair, 0, 0, 'WITHSCORES')
    tag = math.max(last, present, tonumber(least[2] or 0))
    redis.call('SADD', QUEUES, QUEUE .. queue, list_of(queue, class, owner))
  end
  redis.call('ZADD', fair, text(tag + turns / weight_of(owner)), owner)
  redis.call('PUBLISH', WAITING_CHANNEL, queue)
end

-- Record that an owner has no more waiting parts. Its tag is kept for a while: otherwise the owner
-- could come back at once and be first again.
local function leave_line(queue, class, owner)
  local fair, clock = fair_of(queue, class), CLOCK .. queue
  redis.call('HSET', clock, clock_field(class, owner), redis.call('ZSCORE', fair, owner) or 0)
  redis.call('EXPIRE', clock, CLOCK_S)
  redis.call('ZREM', fair, owner)
  redis.call('SREM', QUEUES, list_of(queue, class, owner))
  guarded(redis.call, 'HDEL', EXTRA .. queue, class .. ':' .. owner)
end

-- Delete the keys of a queue that have the wrong type.
local function heal_queue(queue)
  heal('list', QUEUE .. queue, intermediate(queue))
  heal('hash', CLOCK .. queue, EXTRA .. queue)
  heal('zset', LEASES .. queue, CLAIMS .. queue, STARTED .. queue, FINISHED .. queue,
    FAILED .. queue, fair_of(queue, INTERACTIVE), fair_of(queue, BULK))
end

-- The next part of a class and what it costs, moved to the intermediate list; nil when none waits.
local function next_of(queue, class)
  local fair = fair_of(queue, class)
  while true do
    local first = redis.call('ZRANGE', fair, 0, 0, 'WITHSCORES')
    if #first == 0 then return nil end
    local owner, tag = first[1], tonumber(first[2])
    local list = list_of(queue, class, owner)
    local part = redis.call('LMOVE', list, intermediate(queue), 'LEFT', 'RIGHT')
    local cost = part and cost_of((split(part)))
    if part then
      redis.call('HSET', CLOCK .. queue, clock_field(class), text(tag))
      redis.call('EXPIRE', CLOCK .. queue, CLOCK_S)
      redis.call('ZADD', fair, text(tag + cost / weight_of(owner)), owner)
      count_extra(queue, class, owner, 1 - cost)
    end
    if redis.call('LLEN', list) == 0 then leave_line(queue, class, owner) end
    if part then return part, cost end
  end
end

-- The next part of a queue. Bulk parts get the capacity that interactive ones leave, and one turn
-- in BULK_TURN while both wait; a large image counts as the patches that it costs. Entries of the queue's own RQ list are foreign: they come first
-- and are then rejected.
local function next_part(queue)
  local stray = redis.call('LMOVE', QUEUE .. queue, intermediate(queue), 'LEFT', 'RIGHT')
  if stray then return stray end
  local interactive = redis.call('ZCARD', fair_of(queue, INTERACTIVE)) > 0
  local bulk = redis.call('ZCARD', fair_of(queue, BULK)) > 0
  if not (interactive and bulk) then
    if interactive or bulk then redis.call('HDEL', CLOCK .. queue, 'turn') end
    return interactive and next_of(queue, INTERACTIVE) or bulk and next_of(queue, BULK) or nil
  end
  local turn = redis.call('HINCRBY', CLOCK .. queue, 'turn', 1)
  local first, second = INTERACTIVE, BULK
  if turn >= BULK_TURN then first, second = BULK, INTERACTIVE end
  local part, cost = next_of(queue, first)
  if not part then
    first, part, cost = second, next_of(queue, second)
  end
  if first == BULK then
    redis.call('HSET', CLOCK .. queue, 'turn', BULK_TURN * (1 - (cost or 1)))
  elseif (cost or 1) > 1 then
    redis.call('HINCRBY', CLOCK .. queue, 'turn', cost - 1)
  end
  return part
end

-- Put a part of a job in line; at the front if it was claimed before.
local function put_in_line(job, part, claimed)
  local queue, class, owner = read(job, 'queue', 'priority', 'owner')
  if not queue then return end
  local cost = cost_of(job)
  redis.call(claimed and 'LPUSH' or 'RPUSH', list_of(queue, class, owner), part)
  wait_in_line(queue, class, owner, claimed and -cost or 0)
  count_extra(queue, class, owner, cost - 1)
end

-- The place of a part in a list. Tries `guess` first, then searches from the end: most lookups are
-- for recent parts.
local function place_in(list, part, guess)
  if guess and guess >= 0 and redis.call('LINDEX', list, guess) == part then return guess end
  return redis.call('LPOS', list, part, 'RANK', -1)
end

-- Remove a job's waiting parts from its list, without reading the whole list.
local function take_out_of_line(job, parts)
  if #parts == 0 then return end
  local queue, class, owner = read(job, 'queue', 'priority', 'owner')
  local list, place, found = list_of(queue, class, owner), nil, 0
  for _, part in ipairs(parts) do
    place = place_in(list, part, place and place + 1)
    if place then
      redis.call('LSET', list, place, '')
      found = found + 1
    end
  end
  if found == 0 then return end
  redis.call('LREM', list, -found, '')
  count_extra(queue, class, owner, found * (1 - cost_of(job)))
  if redis.call('LLEN', list) == 0 then leave_line(queue, class, owner) end
end

-- The number of waiting parts of an owner, or of all owners, in a class of a queue; a large image
-- counts as the patches that it costs.
local function waiting_of(queue, class, only)
  local count = 0
  for _, owner in ipairs(only and {only} or owners_of(queue, class)) do
    local extra = guarded(redis.call, 'HGET', EXTRA .. queue, class .. ':' .. owner)
    extra = math.max(0, tonumber(extra or 0) or 0)
    count = count + redis.call('LLEN', list_of(queue, class, owner)) + extra
  end
  return count
end

-- The same for both classes.
local function waiting(queue, only)
  return waiting_of(queue, INTERACTIVE, only) + waiting_of(queue, BULK, only)
end

-- The number of images that are drawn before the one at `place` (from 0) of an owner's list.
local function before(queue, class, owner, place)
  local tag = tonumber(redis.call('ZSCORE', fair_of(queue, class), owner) or 0)
  local turn = tag + place / weight_of(owner)
  local ahead = place
  local line = redis.call('ZRANGE', fair_of(queue, class), 0, -1, 'WITHSCORES')
  for at = 1, #line, 2 do
    local gap = turn - tonumber(line[at + 1])
    if line[at] ~= owner and gap >= 0 then
      local turns = math.floor(gap * weight_of(line[at])) + 1
      ahead = ahead + math.min(turns, redis.call('LLEN', list_of(queue, class, line[at])))
    end
  end
  local others = waiting_of(queue, class == BULK and INTERACTIVE or BULK)
  if class == BULK then return ahead + math.min(others, (ahead + 1) * (BULK_TURN - 1)) end
  return ahead + math.min(others, math.floor(ahead / (BULK_TURN - 1)))
end

-- The number of images before the first and before the last of a job's waiting parts.
local function places_of(job, first, last)
  local queue, class, owner = read(job, 'queue', 'priority', 'owner')
  local list, places = list_of(queue, class, owner), {}
  local behind = last and place_in(list, part_of(job, last))
  local ahead = first ~= last
    and place_in(list, part_of(job, first), behind and behind - (last - first))
  for _, place in ipairs({ahead or behind, behind or ahead}) do
    if place then places[#places + 1] = before(queue, class, owner, place) end
  end -- no place: it has just been claimed
  return places
end
