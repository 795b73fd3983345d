"""`python -m model.native.build`: compiles `decode.cpp` beside itself, for each instruction set.

A worker takes the best that its processor has. What does not compile here is left out; without any,
torch decodes. A library's name has a digest of what it was compiled from: one of another
`decode.cpp` is not taken. Standard library alone. Knows nothing of what the code computes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("decode.cpp")
FLAGS = (
    # Never contracted: the same floats on every processor, by every compiler.
    *("-std=c++20", "-O3", "-ffp-contract=off", "-pthread", "-fvisibility=hidden"),
    *("-Wno-psabi", "-fPIC", "-shared"),
)
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
Variants = dict[str, tuple[str, ...]]
X86: Variants = {
    "amx": (*AVX512, "-mamx-tile", "-mamx-int8"),
    "avx512_vnni": AVX512,
    "avx_vnni": ("-mavx2", "-mavxvnni"),
    "avx2": ("-mavx2",),
}
ARM: Variants = {"dotprod": ("-march=armv8.2-a+dotprod",)}
OF_MACHINE: dict[str, Variants] = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
VARIANTS: Variants = {
    **OF_MACHINE.get(platform.machine().lower(), {}),
    "portable": (),
}
"""The instruction sets, best first, each with the flags that it has beside FLAGS."""
COMPILERS = ("c++", "g++", "clang++")
COMMAND = "python -m model.native.build"


def compiler() -> list[str] | None:
    """The command of CXX, or of the first of COMPILERS, that is on PATH; None without any."""
    names = [told] if (told := os.environ.get("CXX")) else COMPILERS
    return next((words for words in map(shlex.split, names) if shutil.which(words[0])), None)


def library(variant: str) -> Path:
    """Where a variant of this source is, once it is built."""
    digest = hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, VARIANTS)).encode()).hexdigest()
    return SOURCE.with_name(f"_decode_{variant}.{digest[:12]}.so")


def built() -> dict[str, Path]:
    """The libraries that are here, by variant, best first."""
    return {name: path for name in VARIANTS if (path := library(name)).exists()}


def build(command: Sequence[str]) -> dict[str, str]:
    """Replace the libraries by new ones; what the compiler said of each that it refused."""
    with tempfile.TemporaryDirectory(dir=SOURCE.parent, prefix=".build-") as folder:
        compilations = {
            name: subprocess.Popen(
                [*command, *FLAGS, *flags, str(SOURCE), "-o", f"{folder}/{library(name).name}"],
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            for name, flags in VARIANTS.items()
        }
        said = {name: each.communicate()[1] for name, each in compilations.items()}
        for path in SOURCE.parent.glob("_decode_*"):
            path.unlink()
        for path in Path(folder).iterdir():
            path.replace(SOURCE.with_name(path.name))
    return {name: said[name] for name, each in compilations.items() if each.returncode}


def main() -> int:
    """Build what can be built; returns the exit code: 1 when torch has to decode."""
    torch = "torch decodes, at a fraction of the speed"
    command = compiler()
    if command is None:
        names = os.environ.get("CXX") or ", ".join(COMPILERS)
        print(f"no C++ compiler ({names}) is on PATH: {torch}", file=sys.stderr)
        print(f"install g++ or clang, then: {COMMAND}", file=sys.stderr)
        return 1
    refused = build(command)
    if "portable" in refused:
        print(f"{refused['portable']}{SOURCE} does not compile: {torch}", file=sys.stderr)
        return 1
    print(f"the decode step is compiled for {', '.join(built())}")
    if refused:
        print(f"{shlex.join(command)} cannot compile it for {', '.join(refused)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
