"""`python -m worker`: run one worker until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> int:
    """Run one worker; returns the exit code: 0 stopped, 1 failed, 2 bad setting."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_at_once)
    from worker.serve import serve  # loading torch takes seconds: a signal may come meanwhile

    return serve()


def _leave_at_once(signum: int, frame: FrameType | None) -> None:
    """Until the loop runs nothing is held, so there is nothing to wait for."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
