-- JSON {names, label, most}, job, ... -> for each job {values of the names, {state, ...}, steps
-- done, fewest steps of a started image, {images before the first and the last waiting one}}; nil
-- for a job that does not exist or has another label. Each state is listed once. Returns fewer
-- jobs once `most` images have been read.
local ask, found, looked = cjson.decode(ARGV[1]), {}, 0

-- States and steps from each part, or from the record's own fields when the job has ended.
local function look(job, n, steps)
  local ended_as, ended_steps = read(job, 'ended_as', 'ended_steps')
  if ended_as then return {ended_as}, tonumber(ended_steps), false, {} end
  local seen, states, done, least, first, last = {}, {}, 0, nil, nil, nil
  local names = {}
  for index = 0, n - 1 do
    names[#names + 1] = 'outcome:' .. index
    names[#names + 1] = 'step:' .. index
    names[#names + 1] = 'execution:' .. index
  end
  local values = redis.call('HMGET', RECORD .. job, unpack(names)) -- too many values for `read`
  for index = 0, n - 1 do
    local at = 3 * index + 1
    local state = values[at] or open_state(part_of(job, index), values[at + 2])
    local step = state == 'finished' and steps or tonumber(values[at + 1] or 0) or 0
    done = done + step
    if state == 'started' then least = math.min(least or step, step) end
    if state == 'queued' then
      first = first or index
      last = index
    end
    if not seen[state] then states[#states + 1] = state end
    seen[state] = true
  end
  looked = looked + n
  return states, done, least or false, places_of(job, first, last)
end

for at = 2, #ARGV do
  local job = ARGV[at]
  local n, steps, labels = read(job, 'n', 'steps', 'labels')
  n = images(n)
  local asked = not ask.label or string.find(labels or '', '\n' .. ask.label .. '\n', 1, true)
  found[#found + 1] = n > 0 and asked and guarded(function()
    return {{read(job, unpack(ask.names))}, look(job, n, tonumber(steps))}
  end) or false
  if looked >= ask.most then break end
end
return found
