"""What Triton compiles in C at its start on a GPU is found in the cache where there is no compiler.

There is no GPU here either, so what is tested is that it is found and loaded, with a stand-in for
the driver's library; not what it does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.triton_driver import link_stand_in
from tests.deploy.files import ROOT
from tests.system import program

pytestmark = pytest.mark.system
LOAD = "from triton.backends.nvidia.driver import CudaUtils; print(callable(CudaUtils().launch))"


def test_an_image_without_a_compiler_finds_what_its_builder_compiled(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    program("gcc")
    cache, stand_in = tmp_path / "cache", tmp_path / "lib"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    script = ROOT / "deploy" / "triton_driver.py"
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=120)
    [compiled] = cache.glob("*/*.so")

    stand_in.mkdir()
    from triton.backends.nvidia import driver

    source = Path(driver.__file__).with_name("driver.c").read_text()
    link_stand_in(stand_in / "libcuda.so.1", source)
    environment |= {"LD_LIBRARY_PATH": str(stand_in), "TRITON_LIBCUDA_PATH": "/usr/lib"}
    environment["CC"] = "/bin/false"
    assert loaded(environment) == "True"
    compiled.unlink()
    assert loaded(environment) != "True", "it was not the cache that it came from"


def loaded(environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", LOAD]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120
    ).stdout.strip()
