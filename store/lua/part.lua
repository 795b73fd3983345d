-- job, index, field, ... -> {state, {value, ...}} of one part; nil when there is none
local job, index = ARGV[1], tonumber(ARGV[2])
if index >= images_of(job) then return nil end
return {part_state(job, index), {read(job, unpack(ARGV, 3))}}
