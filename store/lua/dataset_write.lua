-- uid, writer, seconds until the next turn ('' for none), kept, drawn, shard, entry, field, value,
-- ... -> 'ok', or why this writer must stop: 'lost' (another one has the data set), 'paused',
-- 'canceled', 'dropped', 'gone' or another end state. `entry` is the JSON of this shard; '' for none.
local uid, writer, pause = ARGV[1], ARGV[2], ARGV[3]
local kept, drawn, shard, entry = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local record, time = DATASET .. uid, now()
heal('hash', record)
heal('list', SHARDS .. uid)
local status, holder = unpack(redis.call('HMGET', record, 'status', 'writer'))
if not status then return 'gone' end
if status ~= 'queued' and status ~= 'started' then return status end
if holder ~= writer then return 'lost' end

-- The rate of kept pairs over the last PACE_S to 2 * PACE_S seconds.
local function pace()
  local at, pairs_then, old_at, old_pairs =
    unpack(redis.call('HMGET', record, 'mark_at', 'mark_kept', 'old_at', 'old_kept'))
  at, pairs_then = tonumber(at), tonumber(pairs_then)
  old_at, old_pairs = tonumber(old_at), tonumber(old_pairs)
  if not at or not old_at or not pairs_then or not old_pairs or kept < old_pairs or at > time then
    redis.call('HSET', record, 'mark_at', text(time), 'mark_kept', kept, 'old_at', text(time),
      'old_kept', kept)
    return
  end
  if time - at >= PACE_S then
    redis.call('HSET', record, 'mark_at', text(time), 'mark_kept', kept, 'old_at', text(at),
      'old_kept', pairs_then)
    old_at, old_pairs = at, pairs_then
  end
  if time > old_at then
    redis.call('HSET', record, 'rate', text((kept - old_pairs) / (time - old_at)))
  end
end

if entry ~= '' and redis.call('LLEN', SHARDS .. uid) == shard then
  redis.call('RPUSH', SHARDS .. uid, entry)
end
redis.call('HSET', record, 'kept', kept, 'drawn', drawn)
if drawn > 0 and status == 'queued' then
  redis.call('HSET', record, 'status', 'started')
  redis.call('HSETNX', record, 'started_at', text(time))
end
if #ARGV > 7 then redis.call('HSET', record, unpack(ARGV, 8)) end
pace()
if pause == '' then
  redis.call('HSET', record, 'ended_at', text(time))
  redis.call('HDEL', record, 'rate')
  redis.call('ZREM', DATASET_TURNS, uid)
else
  redis.call('ZADD', DATASET_TURNS, text(time + tonumber(pause)), uid)
end
return 'ok'
