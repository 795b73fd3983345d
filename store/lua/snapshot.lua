-- job -> {{field, value, ...}, {state, ...}, {images before the first and the last waiting one}}
local fields = redis.call('HGETALL', RECORD .. ARGV[1])
if #fields == 0 then return nil end
local states, first, last = {}, nil, nil
for index = 0, tonumber(redis.call('HGET', RECORD .. ARGV[1], 'n')) - 1 do
  states[index + 1] = part_state(ARGV[1], index)
  if states[index + 1] == 'queued' then
    first = first or index
    last = index
  end
end
return {fields, states, places_of(ARGV[1], first, last)}
