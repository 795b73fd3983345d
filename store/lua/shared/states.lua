-- The state of a part: it has an outcome, its job has ended, an execution owns it, or it waits.

-- The state of a part without an outcome.
local function open_state(part, execution)
  if withdrawn(part) then return 'canceled' end
  return execution and 'started' or 'queued'
end

-- The record of an ended job is small. It has no data of canceled parts. After its files were
-- deleted early, it has one letter for the state of each part.
local LETTERS = {finished = 'd', failed = 'f', canceled = 'c'}
local BY_LETTER = {d = 'finished', f = 'failed', c = 'canceled'}

local function part_state(job, index)
  local outcome, execution, ended, letters =
    read(job, 'outcome:' .. index, 'execution:' .. index, 'ended_at', 'states')
  if letters then return BY_LETTER[string.sub(letters, index + 1, index + 1)] or 'canceled' end
  return outcome or ended and 'canceled' or open_state(part_of(job, index), execution)
end

-- Whether an execution owns its part.
local function owned(job, index, execution)
  local outcome, owner, ended = read(job, 'outcome:' .. index, 'execution:' .. index, 'ended_at')
  return not (outcome or ended) and owner == execution and not withdrawn(part_of(job, index))
end

-- Whether this execution has already ended its part this way, and retries because the answer was
-- lost.
local function has_ended(job, index, execution, ended)
  local outcome, owner = read(job, 'outcome:' .. index, 'execution:' .. index)
  return outcome == ended and owner == execution
end
