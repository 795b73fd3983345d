-- queue, ... -> for each queue {started images, then for each class in the order of PRIORITIES
-- {waiting images, seconds that the oldest has waited, {owner, its waiting images, ...}}}
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

-- The number of waiting images, in all and by owner.
local function waiting_by_owner(queue, class)
  local sum, owners = 0, {}
  for _, owner in ipairs(owners_of(queue, class)) do
    local images = waiting_of(queue, class, owner)
    sum = sum + images
    owners[#owners + 1], owners[#owners + 2] = owner, images
  end
  return sum, owners
end

for _, queue in ipairs(ARGV) do
  local entry = {redis.call('ZCARD', LEASES .. queue)}
  for _, class in ipairs(PRIORITIES) do
    local images, owners = waiting_by_owner(queue, class)
    entry[#entry + 1] = {images, oldest(queue, class), owners}
  end
  found[#found + 1] = entry
end
return found
