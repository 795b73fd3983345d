"""The Dockerfile's own steps, run as they stand where there is no container engine: on a copy of
this machine that is thrown away, with its Python in place of the base image's.

What stands on the machine already is there too: that nothing is missing from the base image, and
the packages of its Debian, only a real build shows. The worker's steps need hundreds of megabytes
of torch and are left to it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.files import ROOT, Stage, dockerfile
from tests.deploy.test_containers import free_port
from tests.system import missing, old_compiler, program, root

pytestmark = pytest.mark.system
COPY = "/mnt"
"""Where the copy is put together; in a namespace of its own."""
DEADLINE_S = 900
"""Of all steps, most of it for packages that come from afar."""
MADE = "-- made"
FOUND = (
    "from importlib.util import find_spec as f;"
    "print([name for name in ('torch', 'pip', 'setuptools') if f(name)])"
)
"""Prints what there is of what must not be."""


def test_the_steps_of_the_service_make_what_serves_without_torch(tmp_path: Path) -> None:
    """As the image's user and with its environment: its command starts, and its health check
    passes. Redis is not there, which the service can bear."""
    if os.environ.get("PATHAR_TEST_SYSTEM") != "1":
        missing("it installs packages, which PATHAR_TEST_SYSTEM=1 asks for")
    program("g++")  # which Debian's packages would bring
    stages = dockerfile()
    built, image = stages["service-build"], stages["service"]
    port = str(free_port())
    checks = [
        shlex.join(["python", "-c", FOUND]),
        f"{shlex.join(image.command())} & served=$!",
        f"until {shlex.join(image.health_check())} 2> /dev/null",
        "do kill -0 $served; sleep 0.2; done",
        "echo healthy; kill $served; wait $served",
    ]
    steps = [*run(built), *run(image), *as_user(image, checks, PATHAR_PORT=port)]
    done = in_a_copy(steps, CXX=str(old_compiler(tmp_path)))
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert said[said.index(MADE) :] == [MADE, "[]", "healthy"], done.stdout


def run(stage: Stage) -> Iterator[str]:
    """Lines of a shell that do what a stage's instructions say, but for Debian's packages."""
    for name, text in stage.instructions:
        match name:
            case "WORKDIR":
                yield f"mkdir -p {text}; cd {text}"
            case "ENV":
                yield f"export {text}"
            case "COPY" if "--from" not in text:  # what is copied between stages is there
                *sources, place = text.split()
                for path in (ROOT / source for source in sources):
                    if path.is_dir():  # whose content is copied, as Docker does it
                        yield f"mkdir -p {place}; cp -r {shlex.quote(str(path))}/. {place}"
                    else:
                        yield f"cp {shlex.quote(str(path))} {place}"
            case "RUN" if "apt-get" not in text:
                yield f"sh -c {shlex.quote(text)} 1>&2"


def as_user(image: Stage, lines: list[str], **settings: str) -> Iterator[str]:
    """Lines of a shell that run others as an image's user, with its environment."""
    user, group = image.last("USER").split(":")
    told = {**image.environment(), **settings}
    told["PATH"] = told["PATH"].replace("${PATH}", "/usr/bin:/bin")
    words = [program("setpriv"), f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    words += ["env", "-i", *(f"{key}={value}" for key, value in told.items())]
    yield f"cd /; echo {shlex.quote(MADE)}"
    yield shlex.join([*words, "sh", "-euc", "\n".join(lines)])


def in_a_copy(lines: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a shell in a copy of this machine's files, whose changes are in memory alone."""
    root()
    python = Path(sys.base_prefix)
    layers = f"lowerdir=/,upperdir={COPY}/changed,workdir={COPY}/work"
    mounts = [
        f"mount -t tmpfs none {COPY}; mkdir {COPY}/changed {COPY}/work {COPY}/root",
        f"mount -t overlay -o {layers} none {COPY}/root",
        *(f"mount --rbind {each} {COPY}{'/root' + each}" for each in ("/dev", "/proc")),
    ]
    opened = [f"chmod o+x {shlex.quote(str(each))}" for each in python.parents]
    lines = ["\n".join([*opened, *lines])]
    inside = shlex.join([program("chroot"), f"{COPY}/root", "sh", "-euc", *lines])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PATHAR_", "PYTHON", "VIRT"))}
    script = "\n".join([*mounts, f"exec {inside}"])
    return subprocess.run(
        [program("unshare"), "--mount", "--propagation", "private", "sh", "-euc", script],
        env={
            **kept,
            **settings,
            "PIP_NO_COMPILE": "1",
            "PATH": f"{python / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
