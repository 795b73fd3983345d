"""The commands of training, as users type them: in this process, or in one of their own."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys

import pytest
import torch

THREADS = "OMP_NUM_THREADS"


def start(command: str, *words: object) -> subprocess.Popen[str]:
    """`python -m training.COMMAND WORDS` as a process, for what stops or kills it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"training.{command}", *map(str, words)],
        env={**os.environ, THREADS: "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(command: str, *words: object, code: int = 0, threads: int = 1) -> str:
    """What the same prints in this process, where torch is loaded already; it ends with `code`."""
    module = importlib.import_module(f"training.{command}")
    said, ended, before = io.StringIO(), 0, torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(THREADS, str(threads))
        stack.callback(torch.set_num_threads, before)
        try:
            module.main([str(word) for word in words])
        except SystemExit as error:
            ended = error.code if isinstance(error.code, int) else 1
    assert ended == code, said.getvalue()
    return said.getvalue()
