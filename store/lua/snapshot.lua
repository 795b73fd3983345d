-- job -> {{field, value, ...}, {state, ...}, {images before the first and the last waiting one}};
-- nil when the job does not exist or cannot be read
local job = ARGV[1]
local n = images_of(job)
if n == 0 then return nil end
local states, first, last = {}, nil, nil
for index = 0, n - 1 do
  local state = part_state(job, index)
  states[index + 1] = state
  if state == 'queued' then
    first = first or index
    last = index
  end
end
-- What it was given is for its workers, and may be long.
local function told()
  local all, fields = redis.call('HGETALL', RECORD .. job), {}
  for at = 1, #all, 2 do
    if all[at] ~= 'given' then
      fields[#fields + 1] = all[at]
      fields[#fields + 1] = all[at + 1]
    end
  end
  return fields
end

return guarded(function() return {told(), states, places_of(job, first, last)} end)
