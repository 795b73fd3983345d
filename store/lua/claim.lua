-- queue, count, lease -> {{part, {field, value, ...}}, ...}
local queue, found = ARGV[1], {}
for _ = 1, tonumber(ARGV[2]) do
  local part = next_part(queue)
  if not part then break end
  redis.call('ZADD', CLAIMS .. queue, text(now() + tonumber(ARGV[3])), part)
  local fields = redis.pcall('HGETALL', PART .. part)
  found[#found + 1] = {part, fields.err and {} or fields}
end
return found
