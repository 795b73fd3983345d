"""Memory of a worker by slots: `python -m benchmarks.memory --slots 1,4,16,64`.

For each number of slots a service of our own is started and asked for twice as many images at
once; then the kernel says how much memory its worker had at most (VmHWM), when it was ready and at
the end. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from pathlib import Path

from benchmarks.decode import processor
from benchmarks.service import full_queue
from model.processors import usable_cores
from pathar.local_service import local_run
from worker.settings import SHIPPED


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--slots", default="1,4,16,64")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    print(f"{args.checkpoint.name}, {args.threads} threads, {processor()}")
    print("slots".rjust(8) + "MB when ready".rjust(16) + "MB at most".rjust(16), flush=True)
    table = {}
    for slots in args.slots.split(","):
        ready, most = measure(args, int(slots))
        print(slots.rjust(8) + f"{ready / 1e6:.0f}".rjust(16) + f"{most / 1e6:.0f}".rjust(16))
        table[slots] = {"ready_bytes": ready, "most_bytes": most}
    result = {"checkpoint": args.checkpoint.name, "threads": args.threads, "slots": table}
    print(json.dumps(result))


def measure(args: argparse.Namespace, slots: int) -> tuple[int, int]:
    """The most bytes that a worker with so many slots has had: when ready, and after drawing."""
    settings = {
        "PATHAR_CHECKPOINT": str(args.checkpoint),
        "PATHAR_SLOTS": str(slots),
        "PATHAR_THREADS": str(args.threads),
    }
    with local_run(settings) as run:
        worker = run["pids"]["worker"]
        ready = most_bytes(worker)
        asyncio.run(full_queue(run["url"], args.label, 2 * slots))
        return ready, most_bytes(worker)


def most_bytes(process: int) -> int:
    """The most memory that a process has had."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/{process}/status does not tell VmHWM")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
