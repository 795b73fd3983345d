-- job -> {{field, value, ...}, {state, ...}, {images before the first and the last waiting one}}
local job = ARGV[1]
local fields = redis.call('HGETALL', RECORD .. job)
if #fields == 0 then return nil end
local states, first, last = {}, nil, nil
for index = 0, tonumber(read(job, 'n')) - 1 do
  local state = part_state(job, index)
  states[index + 1] = state
  if state == 'queued' then
    first = first or index
    last = index
  end
end
return {fields, states, places_of(job, first, last)}
