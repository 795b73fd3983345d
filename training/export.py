"""Export: `python -m training.export --workdir R --out C` writes a run's models as a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.checkpoint import build, load_checkpoint, save_checkpoint
from model.request import SamplingSettings
from training.prior import STATE, Options, model_config, read_tokens
from training.run import load_tensors, stage, under
from training.tokenizer import load_tokenizer


def main(words: Sequence[str] | None = None) -> None:
    """Assemble, write and load back."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of the prior stage")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--name", default="small", help="the model's name in answers")
    parser.add_argument("--cfg-scale", type=float, default=1.5, help="recommended guidance")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--top-p", type=float, default=1.0)
    args = parser.parse_args(words)
    defaults = SamplingSettings(args.cfg_scale, args.temperature, args.top_k, args.top_p)
    with stage("export"):
        export(args.workdir, args.out, args.name, defaults)


def export(run: Path, out: Path, name: str, defaults: SamplingSettings) -> None:
    """Write the averaged tokenizer and the best prior of `run` as a checkpoint in `out`."""
    data = read_tokens(run)
    tensors, meta = load_tensors(run / STATE)
    config = model_config(data, Options(**meta["options"]), name, defaults)
    top_k = min(defaults.top_k, config.tokenizer.codebook_size)
    config = replace(config, defaults=replace(defaults, top_k=top_k))
    prior = build(config)[1]
    prior.load_state_dict(under("best", tensors))
    save_checkpoint(out, config, load_tokenizer(run)[0], prior)
    version = load_checkpoint(out).version
    print(f"{out}: {name} {version[:12]}, prior after {meta['step']} steps")


if __name__ == "__main__":
    main()
