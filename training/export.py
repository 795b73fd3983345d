"""Export: `python -m training.export --workdir R --out C` writes a run's models as a checkpoint.

The checkpoint recommends sampling settings, which a sweep may have stored. If you export the same
weights again, for example with another name, it keeps them unless you give others.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.checkpoint import CONFIG, build, load_checkpoint, save_checkpoint, store_defaults
from model.config import ConfigError
from model.request import Label, SamplingSettings
from training import data as patches
from training.prior import STATE, PriorOptions, model_config, read_tokens
from training.run import RunError, load_tensors, not_finite, stage, try_to_write, under
from training.tokenizer import load_tokenizer

DEFAULTS = SamplingSettings(cfg_scale=1.5, temperature=1.0, top_k=100, top_p=1.0)
WEIGHTS_DIGEST = "weights_sha256"


def main(words: Sequence[str] | None = None) -> None:
    """Assemble, write and load back."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of the prior stage")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--name", default="small", help="the model's name in responses")
    parser.add_argument(
        "--cfg-scale", type=float, help=f"recommended guidance (default {DEFAULTS.cfg_scale})"
    )
    parser.add_argument("--temperature", type=float, help=f"default {DEFAULTS.temperature}")
    parser.add_argument("--top-k", type=int, help=f"default {DEFAULTS.top_k}")
    parser.add_argument("--top-p", type=float, help=f"default {DEFAULTS.top_p}")
    given = vars(parser.parse_args(words))
    run, out, name = (given.pop(key) for key in ("workdir", "out", "name"))
    with stage("export"):
        try_to_write("--out", out)
        export(run, out, name, {key: value for key, value in given.items() if value is not None})


def export(run: Path, out: Path, name: str, given: dict[str, Any]) -> None:
    """Write the averaged tokenizer and the best prior of `run` as a checkpoint in `out`; `given`
    are fields of its recommended settings."""
    data = read_tokens(run)
    tensors, meta = load_tensors(run / STATE)
    tokenizer = load_tokenizer(run)[0]
    best = under("best", tensors)
    if not math.isfinite(meta["best_loss"]):
        raise RunError(
            f"{run / STATE}: its prior has no finite validation loss after {meta['step']} steps, "
            "so none of its weights is known to be good; train for more steps"
        )
    if lost := not_finite({**tokenizer.state_dict(), **best}):
        raise RunError(f"{run}: cannot be exported: {lost} is not finite; train it again")
    try:
        config = model_config(data, PriorOptions(**meta["options"]), name, DEFAULTS, given)
    except ConfigError as error:
        raise RunError(str(error)) from error
    prior = build(config)[1]
    prior.load_state_dict(best)
    before = _document(out)
    save_checkpoint(out, config, tokenizer, prior)
    if not given and before.get(WEIGHTS_DIGEST) == _document(out)[WEIGHTS_DIGEST]:
        kept = SamplingSettings.from_dict(before["defaults"])
        labels = [Label.from_dict(told) for told in before["labels"]]
        of_labels = {each.name: each.defaults for each in labels if each.defaults}
        if kept != config.defaults or of_labels:
            store_defaults(out, kept, of_labels)
            print(f"{out}: has the same weights, and keeps the settings that it recommends: {kept}")
    facts = {"held_out_sha256": data.held_out, "labels": data.facts}
    (out / patches.FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    version = load_checkpoint(out).version
    print(f"{out}: {name} {version[:12]}, prior after {meta['step']} steps")


def _document(out: Path) -> dict[str, Any]:
    """The configuration of a checkpoint folder; empty where there is none."""
    path = out / CONFIG
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
