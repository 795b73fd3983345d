"""Compiles the one C file that Triton compiles at a worker's first start on a GPU, into its cache.

Run where the worker's image is built, `TRITON_CACHE_DIR=FOLDER python triton_driver.py`: there is a
compiler there, and none in the image. Needs no GPU. The driver's library, `libcuda.so.1`, comes
from the machine that runs the image; a stand-in with its name and functions is enough to link with.
Without Triton, as with torch for processors, there is nothing to do.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

NAME = "cuda_utils"
FUNCTION = re.compile(r"\bcu[A-Z]\w+(?=\()")


def main() -> None:
    """Fill the cache; SystemExit when the file is not in it afterwards."""
    cache = Path(os.environ["TRITON_CACHE_DIR"])
    cache.mkdir(parents=True, exist_ok=True)
    if find_spec("triton") is None:
        return
    from triton.backends.nvidia import driver
    from triton.runtime.build import compile_module_from_src

    source = Path(driver.__file__).with_name("driver.c").read_text()
    with tempfile.TemporaryDirectory() as folder:
        link_stand_in(Path(folder) / "libcuda.so.1", source)
        with suppress(ImportError):  # compiled and kept, but not loaded: there is no driver here
            compile_module_from_src(
                src=source,
                name=NAME,
                library_dirs=[driver.libdevice_dir, folder],
                include_dirs=driver.include_dirs,
                libraries=driver.libraries,
            )
    if not list(cache.glob(f"*/{NAME}*.so")):
        raise SystemExit(f"{NAME} is not in {cache}")


def link_stand_in(path: Path, source: str) -> None:
    """A library with the functions of the driver that `source` calls, which do nothing."""
    names = sorted(set(FUNCTION.findall(source)))
    functions = "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), "-xc", "-"]
    subprocess.run(command, input=functions, text=True, check=True)


if __name__ == "__main__":
    main()
