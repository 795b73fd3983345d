"""Ablations: `python -m training.ablate --data D --workdir R` runs them and prints the tables.

`training/ablations.toml` has the rows, the budget and the paper's figures. If the command is
killed, run it again: it resumes, and never repeats a finished row. `R/tables.md` holds the printed
tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from model.processors import default_threads
from training.ablation.runner import Instruments, Runner
from training.ablation.settings import SHIPPED, Settings, SettingsError, read_settings
from training.ablation.table import markdown
from training.ablation.tiles import read_tiles
from training.compute import use_threads
from training.distributed import training_device
from training.evaluation.features import parse_features
from training.losses import Lpips
from training.run import StageError, stage, try_to_write


def ablate(args: argparse.Namespace) -> None:
    """Run the rows that were asked for; print the tables with all of them in."""
    if args.threads < 1:
        raise StageError(f"--threads: got {args.threads}, expected at least 1")
    try_to_write("--workdir", args.workdir)
    settings = read_settings(args.config)
    names = chosen_rows(settings, args.rows)
    features, missing = parse_features(args.features or ["efficientnet-lite0"])
    if not features:
        raise SettingsError("; ".join(f"{m.name}: needs {m.needs}" for m in missing))
    lpips = Lpips(args.perceptual) if args.perceptual else None
    use_threads(args.threads)
    tiles = read_tiles(args.data, args.licence, settings.budget.image_size)
    tiles = tiles.to(training_device())
    runner = Runner(settings, tiles, args.workdir, Instruments(tuple(features), lpips))
    runner.run(names, settings.budget.seeds)
    text = markdown(settings, runner.finished(), runner.floor())
    (args.workdir / "tables.md").write_text(text)
    print(text)


def chosen_rows(settings: Settings, asked: str | None) -> list[str]:
    """The rows of `--rows`, or all; SettingsError on one that there is not."""
    names = asked.split(",") if asked else list(settings.rows)
    for name in names:
        if name not in settings.rows:
            raise SettingsError(f"--rows: got {name!r}, expected some of {','.join(settings.rows)}")
    return names


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m training.ablate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with real patches")
    parser.add_argument("--workdir", type=Path, required=True, help="folder to write")
    parser.add_argument("--config", type=Path, default=SHIPPED, help="rows, budget and tables")
    parser.add_argument("--rows", help="run only these rows, a,b,c")
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="networks to score on; default efficientnet-lite0, from its package",
    )
    parser.add_argument("--perceptual", type=Path, help="AlexNet features, safetensors (LPIPS)")
    parser.add_argument("--licence", action="append", default=[], help="use only these")
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args()
    with stage("ablate"):
        ablate(args)


if __name__ == "__main__":
    main()
