"""`python -m worker`: run one worker until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from runtime.settings import SettingsError
from worker.settings import read_settings


def main() -> int:
    """Run one worker; returns the exit code: 0 stopped, 1 failed, 2 bad setting."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_at_once)
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    from worker.serve import serve  # loading torch takes seconds: signals and settings come first

    return serve(settings)


def _leave_at_once(signum: int, frame: FrameType | None) -> None:
    """Exit with code 0. Before the loop runs, the worker holds no parts."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
