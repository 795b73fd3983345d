"""Jobs whose numerics nobody draws any more, say after torch was upgraded on every worker.

A job is bound to one model version and one numerics, so that all its images have the same bits.
When no worker of its numerics has been seen for a while, a worker of the same version and other
numerics takes over jobs that have no image yet; a job that has some cannot be completed with the
same bits and fails with that reason. Jobs of another version wait for their workers.
"""

from __future__ import annotations

import json

import redis

from model.request import ModelInfo
from store import keys, scripts
from store.jobs import seconds
from store.parts import PartStore

ORPHANED_S = 60.0
"""A queue whose workers were last seen this long ago has none."""

_REASON = (
    "its first images were drawn with numerics {old}, which no worker has any more; "
    "send the request again"
)

# ARGV queue, target queue, target numerics, ttl, reason -> how many jobs moved
_ADOPT = (
    scripts.PRELUDE
    + """
local queue, target, numerics, ttl, reason = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local moved = 0

local function count_states(job)
  local count = {queued = 0, started = 0, finished = 0, failed = 0, canceled = 0}
  local n = tonumber(redis.call('HGET', RECORD .. job, 'n'))
  for index = 0, n - 1 do
    local state = part_state(job, index)
    count[state] = count[state] + 1
  end
  return count, n
end

for _, part in ipairs(redis.call('LRANGE', QUEUE .. queue, 0, -1)) do
  local job, index = split(part)
  if job and redis.call('HGET', RECORD .. job, 'queue') == queue then
    local count, n = count_states(job)
    if count.queued == n then
      redis.call('HSET', RECORD .. job, 'queue', target, 'model_numerics', numerics)
      for at = 0, n - 1 do
        redis.call('LREM', QUEUE .. queue, 0, job .. '_' .. at)
        redis.call('HSET', PART .. job .. '_' .. at, 'origin', target)
        redis.call('RPUSH', QUEUE .. target, job .. '_' .. at)
      end
      moved = moved + 1
    elseif count.finished > 0 and count.started == 0 and part_state(job, index) == 'queued' then
      fail(queue, job, index, ttl, reason)
    end
  end
end
if moved > 0 then redis.call('SADD', QUEUES, QUEUE .. target) end
return moved
"""
)


def adopt_orphans(client: redis.Redis, model: ModelInfo, *, result_ttl: int) -> int:
    """Bind orphaned jobs of this version to `model`'s numerics; returns how many jobs moved."""
    with client.pipeline() as pipe:
        pipe.time()
        pipe.hgetall(keys.MODELS)
        time, known = pipe.execute()
    adopt = client.register_script(_ADOPT)
    target = keys.queue_name(model.version, model.numerics)
    moved = 0
    for name, text in known.items():
        queue, entry = name.decode(), json.loads(text)
        old = ModelInfo.from_dict(entry["info"])
        silent_s = seconds(time) - entry["seen"]
        if old.version != model.version or queue == target or silent_s < ORPHANED_S:
            continue
        PartStore(client, queue, "", result_ttl=result_ttl).sweep()
        reason = _REASON.format(old=old.numerics)
        moved += int(adopt(args=[queue, target, model.numerics, result_ttl, reason]))
    return moved
