"""All names of Redis keys: our own, and those of RQ that the scripts maintain.

Does not know what is stored under them; see `scripts.py`. Needs one Redis, not a Redis Cluster: the
scripts build key names from these prefixes.
"""

from __future__ import annotations

import re

from pathar.contract import JOB_ID

# Ours.
RECORD = "pathar:job:"
"""+ job id: hash, the record of one job."""
RESULT = "pathar:result:"
"""+ part id: hash, file name -> bytes; or file name + ":object" -> size and path of the object."""
OBJECTS = "pathar:objects"
"""Sorted set, jobs that may have objects in storage, by when to check whether to delete them."""
CLAIMS = "pathar:claims:"
"""+ queue name: sorted set, parts claimed but not started yet, by when the claim expires."""
CLAIMED = "pathar:claimed:"
"""+ call: list, the parts that a call claimed; kept until its claims expire."""
LEASES = "pathar:leases:"
"""+ queue name: sorted set, parts that an execution owns, by when its lease expires."""
MODELS = "pathar:models"
"""Hash, queue name -> JSON: the model last seen there, when that was, and since when its version
has had workers without a gap. Kept without workers, for jobs that still wait there."""
WORKERS = "pathar:workers"
"""Sorted set, `queue|slots|worker` by when its heartbeat expires."""
GONE = "pathar:gone:"
"""+ job id: the digest of its body, kept for a week after the job itself has expired."""
JOBS = "pathar:jobs:"
"""+ owner: sorted set, job ids by when the jobs were made."""
EVENTS = "pathar:events:"
"""+ job id: stream of its events."""
FAIR = "pathar:fair:"
"""+ queue name + "." + priority: sorted set, owners with waiting parts, by their tags."""
CLOCK = "pathar:clock:"
"""+ queue name: hash, the virtual clock of each priority, and the last tags of owners that have no
waiting parts now."""
EXTRA = "pathar:extra:"
"""+ queue name: hash, `priority:owner` -> the patches that this owner's waiting images cost beyond
one each. Without large images there is none."""
WEIGHTS = "pathar:weights"
"""Hash, owner -> its weight relative to the others; 1 for a missing owner."""
BOOKINGS = "pathar:bookings:"
"""+ queue name, or queue name + "." + owner: sorted set, `images|ticket` by when there is room."""
REFUSED = "pathar:refused:"
"""+ call: hash, the answer to a refused order; kept while redis-py may retry the call."""
RATE = "pathar:rate:"
"""+ owner: hash, the token bucket that limits requests per minute."""
STORED = "pathar:stored:"
"""+ owner: sorted set, jobs by when their counted bytes expire."""
NOTICES = "pathar:notices:"
"""+ owner: sorted set, jobs with a webhook to send, by when the next try is due."""
NOTIFIERS = "pathar:notifiers"
"""Sorted set, owners of such jobs, by when their next turn is."""
WEBHOOK_SECRET = "pathar:webhook-secret"
"""The secret that signs webhooks while there are no API keys."""
BYTES = "pathar:bytes:"
"""+ owner: hash, job -> bytes of its records and results."""
SPEEDS = "pathar:speeds"
"""Hash, `queue|slots|worker` -> JSON: the speed that this worker measured."""
ENDS = "pathar:ends"
"""Hash, JSON of (model, label, priority, status, cause) -> number of jobs that ended this way."""
SEVERAL = "several"
"""The label that a job with several counts under."""
DATASETS = "pathar:datasets:"
"""+ owner: hash, id of a data set -> its uid. Each data set that is made has another uid."""
DATASET = "pathar:dataset:"
"""+ uid: hash, the record of one data set; see `store/datasets.py`."""
SHARDS = "pathar:dataset-shards:"
"""+ uid: list, JSON of the shards of a data set that are stored, in their order."""
DATASET_TURNS = "pathar:dataset-turns"
"""Sorted set, uids of data sets that a writer has something to do for, by when: their next turn,
or the end of the lease of the writer whose turn it is."""
API_KEYS = "pathar:keys"
"""Hash, key id -> JSON of an API key with the hash of its secret."""
KEYS_REQUIRED = "pathar:keys-required"
"""1 while requests need a key, even if there is none; 0 after the service was opened."""
ENDED_CHANNEL = "pathar:ended"
"""Pub/sub channel on which a job's id is published when it reaches an end state."""
WAITING_CHANNEL = "pathar:waiting"
"""Pub/sub channel on which a queue's name is published when parts are put in it."""
EVENTS_CHANNEL = "pathar:events"
"""Pub/sub channel on which a job's id is published at each of its events."""
REVOKED_CHANNEL = "pathar:revoked"
"""Pub/sub channel on which an owner's id is published when its key is revoked."""

# RQ's (2.12 to 3), maintained so that RQ's own tools show the state. The scripts read from them
# whether a part was withdrawn (`PART`), waits or is claimed (`QUEUE`). The rest is only written.
QUEUES = "rq:queues"
QUEUE = "rq:queue:"
INTERMEDIATE = ":intermediate"
"""Appended to a queue's key: the list of parts taken from it and not started yet."""
PART = "rq:job:"
STARTED = "rq:wip:"
FINISHED = "rq:finished:"
FAILED = "rq:failed:"
EXECUTION = "rq:execution:"
EXECUTIONS = "rq:executions:"

FUNCTION = "worker.part"
"""The only function name that a part may have. It is never imported or called."""

_PART_ID = re.compile(f"([0-9a-f]{{8}}-{JOB_ID})_([0-9]{{1,6}})")


def queue_name(version: str, numerics: str) -> str:
    """The RQ queue of one model version and numerics. All of its workers draw the same bits."""
    return f"pathar-{version[:12]}-{numerics}"


def owned_id(owner: str, job_id: str) -> str:
    """A job's id in Redis. It includes the owner, as two owners may use the same job id."""
    return f"{owner}-{job_id}"


def split_owned_id(job: str) -> tuple[str, str]:
    """Inverse of `owned_id`. An owner's id has eight characters."""
    return job[:8], job[9:]


def part_id(job_id: str, index: int) -> str:
    """The RQ job id of one part."""
    return f"{job_id}_{index}"


def split_part_id(part: str) -> tuple[str, int]:
    """Inverse of `part_id`. ValueError for anything else."""
    match = _PART_ID.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is not a part id")
    return match[1], int(match[2])
