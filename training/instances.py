"""How well the rules of model/instances.py separate real nuclei: `python -m training.instances`.

`--data D` needs patches with instance maps. Each rule gets the true binary masks of the validation
groups, and its ids are compared with the maps, by label. Needs no checkpoint. Prints a table, then
one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from model.instances import Ids, Mask, borders, components, instances
from training import data as patches
from training.evaluation.instance_scores import compare
from training.evaluation.pair_tensors import of_label
from training.run import StageError, stage

RULES: dict[str, Callable[[Mask, Mask], Ids]] = {
    "components": lambda mask, between: components(mask),
    "necks": lambda mask, between: instances(mask, None),
    "borders": instances,
}
"""Each makes ids of a mask and the borders between its nuclei; only the last one sees these."""


@dataclass(frozen=True)
class Row:
    """A rule on the patches of a label: means over patches, `ms` of processor time a patch."""

    label: str
    patches: int
    rule: str
    aji: float
    pq: float
    nuclei: float
    found: float
    ms: float


def measure(dataset: patches.Dataset) -> list[Row]:
    """Every rule on every label. StageError where no validation patch has an instance map."""
    known = torch.tensor([sample.instances is not None for sample in dataset.samples])
    held_out = dataset.validation[known[dataset.validation]]
    if not len(held_out):
        raise StageError("--data: no validation patch has an instance map")
    rows = []
    for label in dataset.labels:
        chosen = of_label(dataset, held_out, label)
        maps = [true.astype(np.int32) for true in dataset.instances[chosen].numpy()]
        if maps:
            rows += [_row(label.name, maps, rule) for rule in RULES]
    return rows


def _row(label: str, maps: Sequence[Ids], rule: str) -> Row:
    planes = [(true > 0, borders(true)) for true in maps]
    began = time.thread_time()
    found = [RULES[rule](*each) for each in planes]
    seconds = (time.thread_time() - began) / len(maps)
    scores = [compare(true, ids) for true, ids in zip(maps, found, strict=True)]
    means = (
        [score.aji for score in scores],
        [score.pq for score in scores],
        [len(np.unique(true[true > 0])) for true in maps],
        [ids.max(initial=0) for ids in found],
    )
    aji, pq, nuclei, counted = (round(float(np.mean(each)), 3) for each in means)
    return Row(label, len(maps), rule, aji, pq, nuclei, counted, round(seconds * 1e3, 2))


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m training.instances", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with real patches")
    parser.add_argument("--licence", action="append", default=[], help="as in training")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    args = parser.parse_args(words)
    with stage("instances"):
        rows = measure(patches.read_dataset(args.data, args.licence, args.size))
        print("| label | patches | ids from | AJI | PQ | nuclei a patch | found | ms a patch |")
        print("|---|---|---|---|---|---|---|---|")
        for row in rows:
            print(
                f"| {row.label} | {row.patches} | {row.rule} | {row.aji:.3f} | {row.pq:.3f} | "
                f"{row.nuclei:.1f} | {row.found:.1f} | {row.ms:.2f} |"
            )
        print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
