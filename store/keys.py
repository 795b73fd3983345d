"""The one place that names Redis keys: our own, and those of RQ that the scripts maintain.

Does not know what is stored under them; see `scripts.py`. One Redis is assumed, not a Redis
Cluster: the scripts build key names from these prefixes.
"""

from __future__ import annotations

import re

# Ours.
RECORD = "pathar:job:"
"""+ job id: hash, one request as its client sees it."""
RESULT = "pathar:result:"
"""+ part id: hash, file name -> bytes."""
CLAIMS = "pathar:claims:"
"""+ queue name: sorted set, parts claimed but not started yet by when the claim runs out."""
MODELS = "pathar:models"
"""Hash, queue name -> JSON: the model last seen there, when that was, and since when its version
has had workers without a break. Kept when they are gone, for jobs that still wait there."""
WORKERS = "pathar:workers"
"""Sorted set, `queue|slots|worker` by when its word that it is alive runs out."""
ENDED_CHANNEL = "pathar:ended"
"""Pub/sub channel on which a job's id is published when it reaches an end state."""

# RQ's (2.12), maintained so that RQ's own tools show what is going on.
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

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PART_ID = re.compile(r"([A-Za-z0-9_-]{1,64})_([0-9]{1,6})")


def queue_name(version: str, numerics: str) -> str:
    """The RQ queue of one model version and numerics: whoever listens there draws the same bits."""
    return f"pathar-{version[:12]}-{numerics}"


def is_job_id(text: str) -> bool:
    """Whether `text` can be a job's id; anything else is not looked up."""
    return _JOB_ID.fullmatch(text) is not None


def part_id(job_id: str, index: int) -> str:
    """The RQ job id of one part."""
    return f"{job_id}_{index}"


def split_part_id(part: str) -> tuple[str, int] | None:
    """The job id and index of a part id, None when it is no part id."""
    match = _PART_ID.fullmatch(part)
    return (match[1], int(match[2])) if match else None
