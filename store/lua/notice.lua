-- lease, owner to skip, ... -> {job, tries so far} of the next job with a due webhook; nil when
-- there is none. No other process gets this job before the lease expires.
local lease, busy = tonumber(ARGV[1]), {}
for at = 2, #ARGV do busy[ARGV[at]] = true end
local time = now()
heal('zset', NOTIFIERS)
for _, owner in ipairs(redis.call('ZRANGEBYSCORE', NOTIFIERS, '-inf', text(time))) do
  if not busy[owner] then
    heal('zset', NOTICES .. owner)
    local due =
      redis.call('ZRANGEBYSCORE', NOTICES .. owner, '-inf', text(time), 'LIMIT', 0, TIDIED)
    for _, job in ipairs(due) do
      local url, tries = read(job, 'notify', 'notify_tries')
      if url then
        redis.call('ZADD', NOTICES .. owner, text(time + lease), job)
        give_turn(owner, time)
        return {job, tonumber(tries or 0) or 0}
      end
      redis.call('ZREM', NOTICES .. owner, job) -- the job has expired
    end
    give_turn(owner, time)
  end
end
