"""`python -m worker`: run one worker until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> int:
    """Run one worker; returns the exit code: 0 stopped, 1 failed, 2 bad setting."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_at_once)
    from worker.serve import serve  # loading torch takes seconds, so signals are handled first

    return serve()


def _leave_at_once(signum: int, frame: FrameType | None) -> None:
    """Exit with code 0. Before the loop runs, the worker holds no parts."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
