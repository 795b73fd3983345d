"""The one place that names Redis keys: our own, and those of RQ that the scripts maintain.

Does not know what is stored under them; see `scripts.py`. One Redis is assumed, not a Redis
Cluster: the scripts build key names from these prefixes.
"""

from __future__ import annotations

import re

from model.contract import JOB_ID

# Ours.
RECORD = "pathar:job:"
"""+ job id: hash, one request as its client sees it."""
RESULT = "pathar:result:"
"""+ part id: hash, file name -> bytes; or file name + ":object" -> size and path of the object."""
OBJECTS = "pathar:objects"
"""Sorted set, jobs that may have objects in storage by when to look whether these are to go."""
CLAIMS = "pathar:claims:"
"""+ queue name: sorted set, parts claimed but not started yet by when the claim runs out."""
CLAIMED = "pathar:claimed:"
"""+ call: list, the parts that a call claimed, for as long as its claims last."""
LEASES = "pathar:leases:"
"""+ queue name: sorted set, parts that an execution owns by when its lease runs out."""
MODELS = "pathar:models"
"""Hash, queue name -> JSON: the model last seen there, when that was, and since when its version
has had workers without a break. Kept when they are gone, for jobs that still wait there."""
WORKERS = "pathar:workers"
"""Sorted set, `queue|slots|worker` by when its word that it is alive runs out."""
GONE = "pathar:gone:"
"""+ job id: the digest of its body, kept for a week after the job itself has expired."""
JOBS = "pathar:jobs:"
"""+ owner: sorted set, job ids by when they were made."""
EVENTS = "pathar:events:"
"""+ job id: stream of what happened to it."""
FAIR = "pathar:fair:"
"""+ queue name + "." + priority: sorted set, owners with waiting parts by their tags."""
CLOCK = "pathar:clock:"
"""+ queue name: hash, the clock of each priority and the tags of owners that left the line."""
WEIGHTS = "pathar:weights"
"""Hash, owner -> its share against the others'; 1 for those that are not there."""
BOOKINGS = "pathar:bookings:"
"""+ queue name, or queue name + "." + owner: sorted set, `images|ticket` by when there is room."""
REFUSED = "pathar:refused:"
"""+ call: hash, what a refused order was told, for as long as it may be sent again."""
RATE = "pathar:rate:"
"""+ owner: hash, the bucket that limits requests a minute."""
STORED = "pathar:stored:"
"""+ owner: sorted set, jobs by when what they count expires."""
NOTICES = "pathar:notices:"
"""+ owner: sorted set, jobs whose end is to be sent to a URL, by when the next try is due."""
NOTIFIERS = "pathar:notifiers"
"""Sorted set, owners of such jobs, by when they have their next turn."""
WEBHOOK_SECRET = "pathar:webhook-secret"
"""The secret that signs messages where there are no API keys."""
BYTES = "pathar:bytes:"
"""+ owner: hash, job -> bytes of its records and results."""
SPEEDS = "pathar:speeds"
"""Hash, `queue|slots|worker` -> JSON: how fast that worker measured itself to be."""
ENDS = "pathar:ends"
"""Hash, JSON of (model, label, priority, status, cause) -> how many jobs ended so."""
API_KEYS = "pathar:keys"
"""Hash, key id -> JSON of an API key, its secret hashed."""
KEYS_REQUIRED = "pathar:keys-required"
"""1 as long as requests need a key, whether or not there is one; 0 once the service was opened."""
ENDED_CHANNEL = "pathar:ended"
"""Pub/sub channel on which a job's id is published when it reaches an end state."""
EVENTS_CHANNEL = "pathar:events"
"""Pub/sub channel on which a job's id is published whenever something happens to it."""
REVOKED_CHANNEL = "pathar:revoked"
"""Pub/sub channel on which an owner is published when its key is revoked."""

# RQ's (2.12 to 3), maintained so that RQ's own tools show what is going on. Whether a part is
# withdrawn (`PART`), waits or is claimed (`QUEUE`) is read there; the rest is only written.
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
"""The one function name that a part may carry. It is never imported or called."""

_PART_ID = re.compile(f"([0-9a-f]{{8}}-{JOB_ID})_([0-9]{{1,6}})")


def queue_name(version: str, numerics: str) -> str:
    """The RQ queue of one model version and numerics: whoever listens there draws the same bits."""
    return f"pathar-{version[:12]}-{numerics}"


def owned_id(owner: str, job_id: str) -> str:
    """A job's id in Redis: ids are an owner's own, so two owners may use the same."""
    return f"{owner}-{job_id}"


def split_owned_id(job: str) -> tuple[str, str]:
    """Inverse of `owned_id`; an owner's id has eight characters."""
    return job[:8], job[9:]


def part_id(job_id: str, index: int) -> str:
    """The RQ job id of one part."""
    return f"{job_id}_{index}"


def split_part_id(part: str) -> tuple[str, int]:
    """Inverse of `part_id`; ValueError when it is no part id."""
    match = _PART_ID.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is no part id")
    return match[1], int(match[2])
