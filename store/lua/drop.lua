-- job -> 1, or 0 when the job has not ended or does not exist. Deletes the results before they
-- expire, and all data of the images except their states. The job then counts as one small record.
local job = ARGV[1]
local owner, queue, ended, dropped = read(job, 'owner', 'queue', 'ended_at', 'dropped')
if not ended then return 0 end
if dropped then return 1 end
local record, states = RECORD .. job, {}
for index = 0, images_of(job) - 1 do
  local part = part_of(job, index)
  states[#states + 1] = LETTERS[part_state(job, index)]
  redis.call('UNLINK', RESULT .. part, PART .. part)
  for _, shown in ipairs({FINISHED, FAILED}) do
    guarded(redis.call, 'ZREM', shown .. (queue or ''), part)
  end
  redis.call('HDEL', record, 'outcome:' .. index, 'execution:' .. index, 'losses:' .. index,
    'queue_s:' .. index, 'decode_s:' .. index, 'total_s:' .. index)
end
redis.call('HDEL', record, 'given')
write(job, 'dropped', '1', 'states', table.concat(states))
guarded(redis.call, 'XTRIM', EVENTS .. job, 'MAXLEN', 1) -- keeps the last event, the end
guarded(recount_bytes, owner, job, function() return RECORD_BYTES end)
redis.call('ZADD', OBJECTS, 'XX', text(now()), job)
return 1
