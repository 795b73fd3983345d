"""The tables in Markdown: the paper's figure, ours, the paper's rank, ours. Knows no tensors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations

from training.ablation.runner import Result
from training.ablation.scoring import Figures
from training.ablation.settings import Ablations, Table

NONE = "–"
PAPER = {"fid": "FID-DINOv2", "kid": "KID-UNI"}
"""The paper's name of each of our figures. Its features differ, so ranks alone compare."""
DETAILS = {
    "PSNR": (("psnr",), ".4g"),
    "mask Dice": (("mask_dice",), ".3f"),
    "nats a token, S": (("nll_s", "nll"), ".3f"),
    "nats a token, A": (("nll_a",), ".3f"),
    "coupling": (("coupling",), ".2f"),
    "use S": (("use_s", "use_one"), ".1%"),
    "use A": (("use_a",), ".1%"),
    "perplexity S": (("perplexity_s", "perplexity_one"), ".0f"),
    "perplexity A": (("perplexity_a",), ".0f"),
}
"""Columns of the second table of each: the figures that fill them, and how they are shown. A single
codebook's stand under S."""


def markdown(settings: Ablations, results: Sequence[Result], floors: Mapping[str, Figures]) -> str:
    """Every table that a row of ours is in, once for each network that samples were scored on.
    `floors` is by network.
    """
    run, blocks = {result.row for result in results}, [_budget(settings, results)]
    for table in settings.tables:
        if run.isdisjoint(line.row for line in table.rows):
            continue
        blocks.append(f"## {table.title}")
        blocks += [_compared(table, results, network, floors[network]) for network in floors]
        blocks.append(_details(table, results, next(iter(floors))))
    return "\n\n".join(blocks) + "\n"


def ranks(values: Mapping[str, float | None]) -> dict[str, int]:
    """1 for the lowest value; equal values share a rank; a row without a value has none."""
    known = [value for value in values.values() if value is not None]
    return {
        row: 1 + sum(other < value for other in known)
        for row, value in values.items()
        if value is not None
    }


def in_order(paper: Mapping[str, float | None], ours: Mapping[str, float | None]) -> str:
    """How many pairs of rows stand in the paper's order; "" where there is no pair."""
    both = [row for row in paper if paper[row] is not None and ours.get(row) is not None]
    pairs = list(combinations(both, 2))
    here, there = ranks(ours), ranks(paper)
    same = sum((here[a] < here[b]) == (there[a] < there[b]) for a, b in pairs)
    return f"{same} of {len(pairs)} pairs of rows stand in the paper's order" if pairs else ""


def _budget(settings: Ablations, results: Sequence[Result]) -> str:
    seeds = sorted({result.seed for result in results})
    budget, sampling = settings.budget, settings.sampling
    return (
        f"Every row: tiles of {budget.image_size} pixels; tokenizer {budget.tokenizer_steps} "
        f"updates of {budget.tokenizer_batch}; prior {budget.layers} x {budget.width}, "
        f"{budget.prior_steps} updates of {budget.prior_batch}; {budget.samples} samples a "
        f"modality at guidance {sampling.cfg_scale:g}, temperature {sampling.temperature:g}, "
        f"top-k {sampling.top_k}. Seeds {', '.join(map(str, seeds))}; after ± stands the standard "
        "deviation over a row's."
    )


def _compared(table: Table, results: Sequence[Result], network: str, floor: Figures) -> str:
    """The averages over modalities and both ranks, and how many seeds they are of."""
    cells: list[list[str]] = [["row", "seeds"]]
    for line in table.rows:
        held = sum(result.row == line.row for result in results)
        cells.append([line.title, str(held) if held else NONE])
    remarks = []
    for figure, name in PAPER.items():
        printed = {line.row: getattr(line, figure).average for line in table.rows}
        ours = {line.row: _averages(results, line.row, network, figure) for line in table.rows}
        means = {row: _mean(values) for row, values in ours.items()}
        upper, places = figure.upper(), (ranks(printed), ranks(means))
        cells[0] += [f"{name}, paper", f"{upper}, ours", "rank, paper", "rank, ours"]
        for row, of_row in zip(printed, cells[1:], strict=True):
            of_row += [_number(printed[row]), _spread(ours[row])]
            of_row += [str(place.get(row, NONE)) for place in places]
        if said := in_order(printed, means):
            remarks.append(f"{upper}: {said}.")
        at_best = _mean([scores[figure] for scores in floor.values()])
        remarks.append(f"{upper} of real held-out tiles against training: {_number(at_best)}.")
    return f"Ours on {network} features.\n\n{_grid(cells)}\n\n{' '.join(remarks)}"


def _details(table: Table, results: Sequence[Result], network: str) -> str:
    """By modality, and what the tokenizer and the prior reached."""
    modalities = sorted({name for result in results for name in result.scores[network]})
    named = ", ".join(modalities)
    header = ["row", f"FID-DINOv2, paper: {named}", f"FID, ours: {named}", "use S, A, paper"]
    cells = [[*header, *DETAILS, "agreement", "LPIPS diversity"]]
    for line in table.rows:
        of_row = [result for result in results if result.row == line.row]
        printed = [getattr(line.fid, name, None) for name in modalities]
        ours = [_mean([r.scores[network][name]["fid"] for r in of_row]) for name in modalities]
        use = ", ".join(f"{share:.1%}" for share in line.use) if line.use else NONE
        shown = [line.title, _joined(printed), _joined(ours), use]
        for names, form in DETAILS.values():
            values = [r.figures[name] for r in of_row for name in names if name in r.figures]
            shown.append(_number(_mean(values), form))
        for by_modality in ([r.agreement for r in of_row], [r.diversity for r in of_row]):
            values = [value for one in by_modality for value in one.values()]
            shown.append(_number(_mean(values), ".3f"))
        cells.append(shown)
    return _grid(cells)


def _averages(results: Sequence[Result], row: str, network: str, figure: str) -> list[float]:
    """A row's mean over modalities, one value a seed."""
    return [
        statistics.mean(scores[figure] for scores in result.scores[network].values())
        for result in results
        if result.row == row
    ]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _number(value: float | None, form: str = ".4g") -> str:
    return NONE if value is None or math.isnan(value) else f"{value:{form}}"


def _joined(values: Sequence[float | None]) -> str:
    known = any(value is not None for value in values)
    return ", ".join(map(_number, values)) if known else NONE


def _spread(values: Sequence[float]) -> str:
    """The mean over seeds and their standard deviation."""
    if len(values) < 2:
        return _number(_mean(values))
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def _grid(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table under the first row as its header; columns without a value are left out."""
    columns = [column for column in zip(*cells, strict=True) if set(column[1:]) != {NONE}]
    lines = [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])
