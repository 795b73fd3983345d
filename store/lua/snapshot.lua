-- job -> {{field, value, ...}, {state, ...}, {images before the first and the last waiting one}}
local fields = redis.call('HGETALL', RECORD .. ARGV[1])
if #fields == 0 then return nil end
local queue, class, owner, n =
  unpack(redis.call('HMGET', RECORD .. ARGV[1], 'queue', 'priority', 'owner', 'n'))
local states, first, last = {}, nil, nil
for index = 0, tonumber(n) - 1 do
  states[index + 1] = part_state(ARGV[1], index)
  if states[index + 1] == 'queued' then
    first = first or index
    last = index
  end
end

-- How many images are drawn before the one at place `place` (from 0) of this owner's list.
local function before(place)
  local tag = tonumber(redis.call('ZSCORE', FAIR .. queue .. '.' .. class, owner) or 0)
  local turn = tag + place / weight_of(owner)
  local ahead, others = place, 0
  local line = redis.call('ZRANGE', FAIR .. queue .. '.' .. class, 0, -1, 'WITHSCORES')
  for at = 1, #line, 2 do
    local gap = turn - tonumber(line[at + 1])
    if line[at] ~= owner and gap >= 0 then
      local turns = math.floor(gap * weight_of(line[at])) + 1
      ahead = ahead + math.min(turns, redis.call('LLEN', list_of(queue, class, line[at])))
    end
  end
  local other = class == 'bulk' and 'interactive' or 'bulk'
  for _, each in ipairs(redis.call('ZRANGE', FAIR .. queue .. '.' .. other, 0, -1)) do
    others = others + redis.call('LLEN', list_of(queue, other, each))
  end
  if class == 'bulk' then return ahead + math.min(others, (ahead + 1) * (BULK_TURN - 1)) end
  return ahead + math.min(others, math.floor(ahead / (BULK_TURN - 1)))
end

local places = {}
for at, index in ipairs({first, last}) do
  local place = redis.call('LPOS', list_of(queue, class, owner), ARGV[1] .. '_' .. index)
  if place then places[at] = before(place) end -- no place: claimed just now
end
return {fields, states, places}
