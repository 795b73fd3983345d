"""The decode step of other processors: compiled for ARM and run in qemu, and with emulated
instructions of x86. The same bits as here."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from model.native.build import ARM, FLAGS, SOURCE
from tests.system import program

SHARED = {"-fPIC", "-shared", "-fvisibility=hidden"}
"""Flags of a library, which a program does without."""
STEPS = Path(__file__).with_name("decode_steps.cpp")

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What this processor draws, on one thread."""
    found = printed([str(compiled("g++", tmp_path_factory.mktemp("here") / "steps", []))])
    assert len(found.splitlines()) == 40
    return found


@pytest.mark.parametrize("variant", [*ARM, "portable"])
def test_arm_draws_the_same_bits(tmp_path: Path, variant: str, here: str) -> None:
    emulator = program("qemu-aarch64")
    arm = compiled("aarch64-linux-gnu-g++", tmp_path / "arm", ["-static", *ARM.get(variant, ())])
    assert printed([emulator, str(arm), "2"]) == here, "two threads in qemu, one here"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="emulates x86")
@pytest.mark.parametrize("number", [1, 2, 3], ids=["avx_vnni", "avx512_vnni", "amx"])
def test_newer_instructions_draw_the_same_bits(tmp_path: Path, number: int, here: str) -> None:
    """`emulated.h` has them, as most processors have not. Compiling takes longer than running, so
    the compiler does no more than it must: how it optimises is no part of the bits."""
    emulated = ["-O0", f"-DEMULATED={number}", "-include", str(STEPS.with_name("emulated.h"))]
    newer = compiled("g++", tmp_path / "newer", ["-mavx2", *emulated])
    assert printed([str(newer), "2"]) == here


def compiled(compiler: str, out: Path, flags: list[str]) -> Path:
    words = [*(each for each in FLAGS if each not in SHARED), "-I", str(SOURCE.parent), *flags]
    subprocess.run([program(compiler), *words, str(STEPS), "-o", str(out)], check=True, timeout=300)
    return out


def printed(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout
