-- queue, count, lease, call -> {{part, {field, value, ...}}, ...}. A retry of the same call
-- returns the same parts.
local queue, count, lease, call = ARGV[1], tonumber(ARGV[2]), ARGV[3], CLAIMED .. ARGV[4]
local expiry, found = text(now() + tonumber(lease)), {}
if redis.call('EXISTS', call) == 0 then
  for _ = 1, count do
    local part = next_part(queue)
    if not part then break end
    redis.call('ZADD', CLAIMS .. queue, expiry, part)
    redis.call('RPUSH', call, part)
  end
  redis.call('EXPIRE', call, lease)
end
for at, part in ipairs(redis.call('LRANGE', call, 0, -1)) do
  local fields = redis.pcall('HGETALL', PART .. part)
  found[at] = {part, fields.err and {} or fields}
end
return found
