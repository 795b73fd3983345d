-- In what state a part is: it has an outcome, or an execution that owns it, or it waits.

-- The state of a part that has no outcome.
local function open_state(part, execution)
  if withdrawn(part) then return 'canceled' end
  return execution and 'started' or 'queued'
end

local function part_state(job, index)
  local outcome, execution = read(job, 'outcome:' .. index, 'execution:' .. index)
  return outcome or open_state(part_of(job, index), execution)
end

local function owned(job, index, execution)
  return read(job, 'execution:' .. index) == execution and not withdrawn(part_of(job, index))
end
