-- queue, ... -> {started, {images waiting, seconds that the oldest of them waits} of each class}
-- for each queue, in the order of PRIORITIES
local time, found = now(), {}

local function oldest(queue, class)
  local age = 0
  for _, owner in ipairs(owners_of(queue, class)) do
    local part = redis.call('LINDEX', list_of(queue, class, owner), 0)
    local created_at = part and tonumber(read(split(part), 'created_at') or nil)
    if created_at then age = math.max(age, time - created_at) end
  end
  return text(age)
end

for _, queue in ipairs(ARGV) do
  local entry = {redis.call('ZCARD', LEASES .. queue)}
  for _, class in ipairs(PRIORITIES) do
    entry[#entry + 1] = {waiting_of(queue, class), oldest(queue, class)}
  end
  found[#found + 1] = entry
end
return found
