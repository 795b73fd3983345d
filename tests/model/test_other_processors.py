"""The decode step compiled for ARM, and run in qemu: the same bits as here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from model.native.build import ARM, FLAGS, SOURCE
from tests.system import program

SHARED = {"-fPIC", "-shared", "-fvisibility=hidden"}
"""Flags of a library, which a program does without."""
STEPS = Path(__file__).with_name("decode_steps.cpp")

pytestmark = pytest.mark.system


@pytest.mark.parametrize("variant", [*ARM, "portable"])
def test_arm_draws_the_same_bits(tmp_path: Path, variant: str) -> None:
    emulator = program("qemu-aarch64")
    arm = compiled("aarch64-linux-gnu-g++", tmp_path / "arm", ["-static", *ARM.get(variant, ())])
    here = compiled("g++", tmp_path / "here", [])
    wanted = printed([str(here)])
    assert len(wanted.splitlines()) == 40
    assert printed([emulator, str(arm), "2"]) == wanted, "two threads in qemu, one here"


def compiled(compiler: str, out: Path, flags: list[str]) -> Path:
    words = [*(each for each in FLAGS if each not in SHARED), "-I", str(SOURCE.parent), *flags]
    subprocess.run([program(compiler), *words, str(STEPS), "-o", str(out)], check=True, timeout=300)
    return out


def printed(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout
