"""What the card of a data set says of its quality: how many pairs were drawn and kept, agreement,
nuclei, and what is known of copies. Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pathar.quality import BINS, Tally
from pathar.recipe import Plan

WIDEST = 40
"""Signs of the longest bar of a histogram."""
AGREEMENT = (
    "Agreement is the Dice of the mask and the nuclei that a segmenter finds in the image. It was "
    "trained on real patches, and errs where they mislead it. Two empty masks agree."
)
NOT_MEASURED = (
    "How near these pairs lie to training patches was not measured: a checkpoint does not hold the "
    "patches that it was trained on."
)
AUDIT = (
    "The audit of the model (`training.evaluate`) measured other samples of these labels, drawn "
    "with the recommended settings. A sample and a patch differ by the share of locations where "
    "their tokens are not the same; the table has the medians, each to the nearest training patch. "
    "Too near are samples nearer than 99% of held-out real patches."
)


def quality_lines(plan: Plan, quality: Mapping[str, Tally]) -> Iterator[str]:
    """The section; `quality` by label."""
    yield from ("## Quality", "", f"{_kept(plan)} {AGREEMENT}", "")
    head = ("label", "drawn", "kept", "drawn for each kept", "nuclei a patch (middle 90%)")
    yield from _head(*head, "real patches")
    for label, tally in quality.items():
        real = None if plan.recipe.sides else plan.models[label].learned.get("nuclei")
        yield _row(
            f"`{label}`",
            f"{tally.drawn:,}",
            f"{tally.kept:,}",
            f"{tally.drawn / tally.kept:.2f}",
            _nuclei(tally),
            "" if real is None else f"{real:.1f}",
        )
    for label, tally in quality.items():
        if any(tally.agreement_drawn):
            yield from ("", f"Agreement of `{label}`, in steps of {1 / BINS:g}:", "")
            yield from (f"    {line}" for line in _histogram(tally))
    yield from ("", *_copies(plan), "")


def _kept(plan: Plan) -> str:
    """Which pairs the recipe keeps."""
    least, best_of = plan.recipe.min_agreement, plan.recipe.best_of
    best = f"Of each {best_of} images the one that agrees most. " if best_of > 1 else ""
    enough = "" if least is None else f"Only pairs with an agreement of {least:g} or more."
    return f"{best}{enough}".strip() or "All pairs that were drawn."


def _nuclei(tally: Tally) -> str:
    """The mean, and between which numbers the middle nine tenths of the pairs lie."""
    by_count = sorted((int(name), pairs) for name, pairs in tally.nuclei.items())
    counts = [count for count, pairs in by_count for _ in range(pairs)]
    spare = len(counts) // 20
    return f"{sum(counts) / len(counts):.1f} ({counts[spare]} to {counts[-1 - spare]})"


def _histogram(tally: Tally) -> Iterator[str]:
    """From the first bin with a pair to the last: how many were kept of how many drawn."""
    used = [at for at, count in enumerate(tally.agreement_drawn) if count]
    most = max(tally.agreement_drawn)
    for at in range(used[0], used[-1] + 1):
        drawn, kept = tally.agreement_drawn[at], tally.agreement_kept[at]
        long, whole = (-(-WIDEST * count // most) for count in (kept, drawn))
        bar = "#" * long + "." * (whole - long)
        yield f"{at / BINS:.2f} {bar:{WIDEST}} {kept:,} of {drawn:,} kept"


def _copies(plan: Plan) -> Iterator[str]:
    audits = {label: ref.learned.get("audit") for label, ref in plan.models.items()}
    known = {label: audit for label, audit in audits.items() if audit}
    yield f"{NOT_MEASURED} {AUDIT if known else 'Nor does it hold an audit of its samples.'}"
    if known:
        yield ""
        yield from _head("label", "audit of", "samples", "differ", "held-out real", "too near")
    for label, audit in known.items():
        near = (f"{audit[name]:.1%}" for name in ("nearest", "nearest_of_real", "copies"))
        yield _row(f"`{label}`", audit["date"], str(audit["samples"]), *near)


def _head(*cells: str) -> Iterator[str]:
    yield from (_row(*cells), "|---" * len(cells) + "|")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
