"""`python -m training.weights --workdir R --out F` writes a run's tokenizer as a file of its own.

The file holds only the averaged weights, in bf16, an eighth of a run's state. If you cannot keep
the run folder, a later training can start from this file (`--start-from F` of training.tokenizer
and training.image_decoder).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.run import load_tensors, stage, try_to_write
from training.samples import UNSTATED
from training.tokenizer import STATE, load_tokenizer
from training.warm_start import save_start


def main(words: Sequence[str] | None = None) -> None:
    """Read the run's state, write the file."""
    parser = argparse.ArgumentParser(prog="python -m training.weights", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    args = parser.parse_args(words)
    with stage("weights"):
        try_to_write("--out", args.out.parent)
        tokenizer, options = load_tokenizer(args.workdir)
        step = load_tensors(args.workdir / STATE)[1]["step"]
        begun = options.started_licence.split(" and ") if options.started_from else []
        licences = sorted({*(options.licences or [UNSTATED]), *begun} - {""})
        save_start(args.out, tokenizer, options.size, step, " and ".join(licences))
        print(f"{args.out}: {options.size}, {step} steps, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
