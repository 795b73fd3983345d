"""A worker is told to stop under load: `python -m benchmarks.stop`, as root.

One job fills all slots of two workers, each on a host of its own with half of the cores. It is
drawn once in peace; then again, and one worker gets SIGTERM as soon as every slot is in use, which
is when it has the most to do. `late` is how much later than in peace an image came at most;
`decode` how long one is in a slot; `twice` how many were handed back and begun anew by the other,
which happens where a decode takes longer than the 12 s for which a worker goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster import Cluster
from benchmarks.decode import processor
from benchmarks.hosts import halves
from benchmarks.netns import NoNetwork, inside
from pathar import Client
from worker.settings import SHIPPED

ALLOWED_S = 15


@dataclass
class ImageTimes:
    """Seconds from the request at which each image was begun last, and was there; how many times
    one was begun."""

    begun: dict[int, float] = field(default_factory=dict)
    there: dict[int, float] = field(default_factory=dict)
    starts: int = 0


def main() -> int:
    """Parse, measure, print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stop", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--slots", default="16,128", help="of each worker, a run each")
    args = parser.parse_args()
    print(f"{args.checkpoint.name}, two workers of {len(halves()[0])} threads, {processor()}")
    print("".join(name.rjust(14) for name in ("slots", "decode, s", "twice", "late, s", "allowed")))
    results = []
    try:
        for slots in map(int, args.slots.split(",")):
            results.append(measure(args, slots))
    except NoNetwork as error:
        print(f"benchmarks.stop: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"allowed_s": ALLOWED_S, "runs": results}))
    return 0


def measure(args: argparse.Namespace, slots: int) -> dict[str, float]:
    """In peace, then with a signal; a line of the table."""
    settings = {
        **os.environ,
        "PATHAR_CHECKPOINT": str(args.checkpoint),
        "PATHAR_SLOTS": str(slots),
        "PATHAR_THREADS": str(len(halves()[0])),
    }
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        cluster = Cluster(Path(folder), settings, halves())
        try:
            cluster.ready()
            pid = cluster.workers[0].pid("worker")
            peace = draw(cluster, args.label, slots, lambda: None)
            told = draw(cluster, args.label, slots, lambda: os.kill(pid, signal.SIGTERM))
        finally:
            cluster.close()
    decode = statistics.median(peace.there[k] - peace.begun[k] for k in peace.there)
    late = max(told.there[k] - peace.there[k] for k in peace.there)
    twice, allowed = told.starts - len(told.there), ALLOWED_S + decode
    shown = (f"{slots}", f"{decode:.1f}", f"{twice}", f"{late:.1f}", f"{allowed:.1f}")
    print("".join(each.rjust(14) for each in shown), flush=True)
    return {"slots": slots, "decode_s": decode, "twice": twice, "late_s": late}


def draw(cluster: Cluster, label: str, slots: int, full: Callable[[], None]) -> ImageTimes:
    """Have a job drawn; `full` is called when every slot is in use."""
    drawn = ImageTimes()
    with inside(cluster.asking.space), Client(cluster.url, cluster.key) as client:
        started = time.perf_counter()
        job = client.submit(label, 2 * slots, seed=7)
        for event in client.events(job.id):
            at = time.perf_counter() - started
            if event.kind == "started":
                drawn.begun[event.data["index"]] = at
                drawn.starts += 1
                if drawn.starts == 2 * slots:
                    full()
            elif event.kind == "image":
                drawn.there[event.data["index"]] = at
    if len(drawn.there) != 2 * slots:
        raise RuntimeError(f"{2 * slots - len(drawn.there)} images were lost")
    return drawn


if __name__ == "__main__":
    sys.exit(main())
