-- lease, owner to leave out, ... -> {job, tries so far} of the next job whose end is to be sent now,
-- nil when there is none; nobody else gets it before the lease runs out
local lease, busy = tonumber(ARGV[1]), {}
for at = 2, #ARGV do busy[ARGV[at]] = true end
local time = now()
heal('zset', NOTIFIERS)
for _, owner in ipairs(redis.call('ZRANGEBYSCORE', NOTIFIERS, '-inf', text(time))) do
  if not busy[owner] then
    heal('zset', NOTICES .. owner)
    local due = redis.call('ZRANGEBYSCORE', NOTICES .. owner, '-inf', text(time), 'LIMIT', 0, TIDIED)
    for _, job in ipairs(due) do
      local url, tries = read(job, 'notify', 'notify_tries')
      if url then
        redis.call('ZADD', NOTICES .. owner, text(time + lease), job)
        give_turn(owner, time)
        return {job, tonumber(tries or 0) or 0}
      end
      redis.call('ZREM', NOTICES .. owner, job) -- it has expired
    end
    give_turn(owner, time)
  end
end
