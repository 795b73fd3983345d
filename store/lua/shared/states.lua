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

-- Whether an execution owns its part.
local function owned(job, index, execution)
  local outcome, owner = read(job, 'outcome:' .. index, 'execution:' .. index)
  return not outcome and owner == execution and not withdrawn(part_of(job, index))
end

-- Whether it has brought its part to this end itself, and asks again since the answer was lost.
local function was_told(job, index, execution, ended)
  local outcome, owner = read(job, 'outcome:' .. index, 'execution:' .. index)
  return outcome == ended and owner == execution
end
