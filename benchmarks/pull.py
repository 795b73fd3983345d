"""Bulk pulls: `python -m benchmarks.pull` runs the command `pathar pull` on a service of its own.

First the rate: what one process draws alone, from admission to PNG bytes, and what `pathar pull` of
as many pairs takes from its start to its end, in turn, round by round, so that a drifting machine
drifts for both. Then with `--kills` a pull of three labels during which worker, API and puller get
kill -9 at even distances, and the same undisturbed: all bytes must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tarfile import TarError
from tarfile import open as open_tar
from zipfile import BadZipFile, ZipFile

from benchmarks.decode import processor
from benchmarks.service import bare_rate
from model.processors import usable_cores
from pathar.local_service import local_run
from pathar.run_file import read_run
from worker.settings import SHIPPED

SEED = ("--seed", "7", "--shard-size", "250")
KILLED = (
    *("worker", "puller", "service", "worker", "worker"),
    *("puller", "worker", "service", "puller", "worker"),
)
"""Five times the worker, three times the puller, twice the API."""
LABELS = ("histology", "cytology", "fluorescence")
LOOK_S = 0.05


def main() -> int:
    """Parse, measure, print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pull", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--images", type=int, default=500, help="drawn in each round")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--kills", type=int, default=0, help="pairs of the pull with kills")
    args = parser.parse_args()
    settings = {
        "PATHAR_CHECKPOINT": str(args.checkpoint),
        "PATHAR_SLOTS": str(args.slots),
        "PATHAR_THREADS": str(args.threads),
    }
    print(f"{args.checkpoint.name}, {args.slots} slots, {args.threads} threads, {processor()}")
    result: dict[str, object] = {"threads": args.threads, "slots": args.slots}
    with tempfile.TemporaryDirectory() as folder, local_run(settings) as run:
        home, out = Path(run["home"]), Path(folder)
        if args.rounds:
            result |= rates(args, home, out)
        if args.kills:
            result |= killed(args.kills, home, out)
    print(json.dumps(result))
    return 0 if result.get("equal", True) else 1


def rates(args: argparse.Namespace, home: Path, out: Path) -> dict[str, object]:
    """Images a second alone and pulled, medians of the rounds."""
    alone, pulled = [], []
    for number in range(args.rounds):
        alone.append(bare_rate(args))
        started = time.perf_counter()
        words = [f"{args.label}={args.images}", "--seed", str(number)]
        if pull(home, words, out / str(number)).wait():
            raise RuntimeError("the pull failed")
        pulled.append(args.images / (time.perf_counter() - started))
    share = statistics.median(p / a for p, a in zip(pulled, alone, strict=True))
    print(f"images a second: alone {statistics.median(alone):.2f}, ", end="")
    print(f"pulled {statistics.median(pulled):.2f}, share {share:.3f}", flush=True)
    found = {"engine_images_per_s": alone, "pulled_images_per_s": pulled, "share": share}
    return {**found, "pairs": args.images}


def killed(pairs: int, home: Path, out: Path) -> dict[str, object]:
    """Pull with kills and without; what the files say."""
    each = pairs // len(LABELS)
    counts = {label: each for label in LABELS[1:]}
    words = [f"{LABELS[0]}={pairs - each * len(counts)}", *(f"{k}={v}" for k, v in counts.items())]
    words += SEED
    started = time.perf_counter()
    process, kills = pull(home, words, out / "killed"), list(KILLED)
    while kills or process.poll() is None:
        time.sleep(LOOK_S)
        due = pairs * (len(KILLED) - len(kills) + 1) // (len(KILLED) + 1)
        if kills and safe(out / "killed") >= due:
            what = kills.pop(0)
            print(f"{due} pairs safe: kill -9 {what}", flush=True)
            if what == "puller":
                process.kill()
                process.wait()
                process = pull(home, words, out / "killed")
            else:
                os.kill(read_run(home)["pids"][what], signal.SIGKILL)
        elif process.poll() not in (None, 0):
            raise RuntimeError("the pull failed")
    disturbed = time.perf_counter() - started
    started = time.perf_counter()
    if pull(home, words, out / "alone").wait():
        raise RuntimeError("the undisturbed pull failed")
    undisturbed = time.perf_counter() - started
    files, alone = contents(out / "killed"), contents(out / "alone")
    manifest = json.loads(files["manifest.json"])
    listed = [each for shard in manifest["shards"] for each in shard["files"]]
    right = all(hashlib.sha256(files[f["path"]]).hexdigest() == f["sha256"] for f in listed)
    found = {
        "killed": dict(Counter(KILLED)),
        "distinct_pairs": distinct(out / "killed"),
        "sha256_right": right,
        "equal": files == alone,
        "seconds": {"killed": disturbed, "undisturbed": undisturbed},
    }
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def pull(home: Path, words: list[str], out: Path) -> subprocess.Popen[bytes]:
    """A running `pathar pull` from the service of this home."""
    command = [sys.executable, "-m", "pathar", "pull", *words, "--out", str(out)]
    url = read_run(home)["url"]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, "PATHAR_URL": url}, stderr=log)


def safe(out: Path) -> int:
    """How many pairs are whole on disk, by the jobs and shards there."""
    names: list[str] = []
    for path in out.rglob("*"):
        with suppress(OSError, BadZipFile, TarError):  # it may be renamed or deleted meanwhile
            if path.suffix == ".zip":
                with ZipFile(path) as file:
                    names += file.namelist()
            elif path.suffix == ".tar":
                with open_tar(path) as archive:
                    names += archive.getnames()
    return sum(name.endswith("tokens.json") for name in names)


def contents(out: Path) -> dict[str, bytes]:
    """Every file below, by path."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def distinct(out: Path) -> int:
    """How many pairs have tokens of their own."""
    tokens = set()
    for path in out.rglob("*.tar"):
        with open_tar(path) as archive:
            members = [member for member in archive if member.name.endswith("tokens.json")]
            tokens |= {file.read() for m in members if (file := archive.extractfile(m))}
    return len(tokens)


if __name__ == "__main__":
    sys.exit(main())
