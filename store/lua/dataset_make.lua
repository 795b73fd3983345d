-- owner, id, uid, digest, most, field, value, ... -> {'made', uid}, {'found', uid}, {'other'} or
-- {'many'}. A retry of the same call has the same uid and gets the same answer.
local owner, id, uid, digest, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local names = DATASETS .. owner
heal('hash', names)
local known = redis.call('HGET', names, id)
if known then
  heal('hash', DATASET .. known)
  local was = redis.call('HGET', DATASET .. known, 'digest')
  if known == uid then return {'made', uid} end
  if was == digest then return {'found', known} end
  if was then return {'other'} end
elseif redis.call('HLEN', names) >= most then
  return {'many'}
end
local time = text(now())
redis.call('HSET', names, id, uid)
redis.call('HSET', DATASET .. uid, 'owner', owner, 'id', id, 'digest', digest, 'status', 'queued',
  'created_at', time, unpack(ARGV, 6))
heal('zset', DATASET_TURNS)
redis.call('ZADD', DATASET_TURNS, time, uid)
return {'made', uid}
