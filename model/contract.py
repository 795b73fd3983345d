"""What the service, the workers, the store and the client agree on: words, names, patterns, ranges.

Each stands here once. Standard library only, as in `request.py`. Knows no HTTP, no Redis and no
tensors.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Status = Literal["queued", "started", "finished", "failed", "canceled"]
"""The state of a job or of one image."""
STATUSES: tuple[Status, ...] = get_args(Status)
END_STATES: tuple[Status, ...] = ("finished", "failed", "canceled")
"""The states in which nothing changes any more, and the events that say so."""

Priority = Literal["interactive", "bulk"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
DEFAULT_PRIORITY: Priority = "interactive"

IMAGE_NAME = "image.png"
MASK_NAME = "mask.png"
TOKENS_NAME = "tokens.json"
FILE_NAMES = (IMAGE_NAME, MASK_NAME, TOKENS_NAME)
"""The files of one image."""

MAX_SEED = 2**53 - 1
"""Seeds are 0..2^53 - 1, the integers that a JavaScript number keeps exactly."""

JOB_ID = "[A-Za-z0-9_-]{1,64}"
JOB_ID_EXPECTED = "1 to 64 of A-Z a-z 0-9 _ -"
EVENT_ID = "[0-9]{1,19}(-[0-9]{1,19})?"


def is_job_id(text: str) -> bool:
    """Whether `text` can be a job's id; anything else is not looked up."""
    return re.fullmatch(JOB_ID, text) is not None
