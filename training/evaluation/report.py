"""A report's folder: one section after another, each kept as it is done, and one page of them all.

A section, or part of one, that was finished for the same checkpoint, patches and settings is not
taken again, so a report that was interrupted goes on where it was. Knows no metric in particular.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from training.evaluation.metric import Metric, Missing

PARTS = "parts"
JPEG_QUALITY = 90
"""Of sheets of patches, which would be four times as large as PNG."""


@dataclass(frozen=True)
class Section:
    """One family of figures: `pictures` by file name, .jpg or .png, `findings` in sentences.

    `real_pictures` show real patches, or what is decoded from tokens of theirs; `real_findings`
    name originals, which may be patients.
    """

    metrics: Sequence[Metric] = ()
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    real_pictures: dict[str, Image.Image] = field(default_factory=dict)
    findings: Sequence[str] = ()
    real_findings: Sequence[str] = ()
    missing: Sequence[Missing] = ()


@dataclass(frozen=True)
class Chapter:
    """A section to be taken: its heading, what it says about itself, and how it is taken.

    One that takes long is taken in parts, each kept by itself; `takes` names them.
    """

    heading: str
    about: str
    takes: Mapping[str, Callable[[], Section]]


def write(
    out: Path,
    title: str,
    facts: dict[str, object],
    chapters: Sequence[Chapter],
    show_real: bool = True,
) -> None:
    """Take what is not there yet; write `report.json` and `README.md` with pictures into `out`.

    `facts` say what was measured and how; a part taken under other facts is taken again. Without
    `show_real`, which is then a fact, nothing in `out` shows or names a real patch, whatever an
    earlier report left there.
    """
    if not show_real:
        facts = {**facts, LEFT_OUT: "left out"}
        _drop_real(out)
    taken = []
    for number, chapter in enumerate(chapters, start=1):
        print(f"report {number}/{len(chapters)}: {chapter.heading}", flush=True)
        parts = [part(out, facts, *named, show_real) for named in chapter.takes.items()]
        joined = {kind: [one for each in parts for one in each[kind]] for kind in KINDS}
        # What every label lacks is said once.
        joined["missing"] = [
            m for i, m in enumerate(joined["missing"]) if m not in joined["missing"][:i]
        ]
        taken.append(joined)
    report = {
        **facts,
        "metrics": [metric for each in taken for metric in each["metrics"]],
        "findings": [finding for each in taken for finding in each["findings"]],
        "missing": [missing for each in taken for missing in each["missing"]],
    }
    replace(out / "report.json", json.dumps(report, indent=1) + "\n")
    pages = [_page(chapter, each) for chapter, each in zip(chapters, taken, strict=True)]
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    head = [f"# {title}", "", *lines, "", LEGEND, ""]
    replace(out / "README.md", "\n".join([*head, *(line for page in pages for line in page)]))


LEGEND = (
    "A figure in brackets is the floor: the same figure for real patches compared with real "
    "patches, or what the section says. A range is a 95% interval over samples, patches or "
    "seeds. In Memorisation, patches of one original count as one. Elsewhere each patch counts, "
    "so with few originals the interval is too narrow."
)
LEFT_OUT = "pictures of real patches"
KINDS = ("metrics", "pictures", "findings", "missing")


def part(
    out: Path,
    facts: dict[str, object],
    name: str,
    take: Callable[[], Section],
    show_real: bool = True,
) -> dict[str, list]:  # type: ignore[type-arg]
    """A section as its JSON in `out / "parts"`; taken if it is not there under these facts."""
    path = out / PARTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        held: dict[str, list] = json.loads(path.read_text())  # type: ignore[type-arg]
        if held["facts"] == json.loads(json.dumps(facts)):
            return held
    section = take()
    pictures = section.pictures | (section.real_pictures if show_real else {})
    for file, picture in pictures.items():
        picture.save(out / file, quality=JPEG_QUALITY, subsampling=0)
    taken = {
        "facts": json.loads(json.dumps(facts)),
        "metrics": [metric.as_json() for metric in section.metrics],
        "pictures": list(pictures),
        "findings": [*section.findings, *(section.real_findings if show_real else ())],
        "missing": [{"name": each.name, "needs": each.needs} for each in section.missing],
    }
    replace(path, json.dumps(taken, indent=1) + "\n")
    return taken


def _drop_real(out: Path) -> None:
    """Take away every part that was taken with real patches shown, its pictures first."""
    for path in (out / PARTS).glob("*.json"):
        held = json.loads(path.read_text())
        if LEFT_OUT not in held["facts"]:
            for name in held["pictures"]:
                (out / name).unlink(missing_ok=True)
            path.unlink()


def _page(chapter: Chapter, taken: dict[str, list]) -> list[str]:  # type: ignore[type-arg]
    lines = [f"## {chapter.heading}", "", chapter.about, ""]
    lines += [line for finding in taken["findings"] for line in (finding, "")]
    lines += table(taken["metrics"])
    lines += [line for name in taken["pictures"] for line in (f"![{chapter.heading}]({name})", "")]
    if taken["missing"]:
        lines += [
            f"- Not measured: {each['name']}. It needs {each['needs']}."
            for each in taken["missing"]
        ]
        lines.append("")
    return lines


def table(metrics: Sequence[dict[str, object]]) -> list[str]:
    """Metrics as JSON objects in one Markdown table: a row a figure, a column a label."""
    if not metrics:
        return []
    labels = list(dict.fromkeys(str(metric["label"]) for metric in metrics))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for metric in metrics:
        key = str(metric["name"]), str(metric["features"])
        rows.setdefault(key, {})[str(metric["label"])] = cell(metric)
    lines = [
        f"| figure | features | {' | '.join(labels)} |",
        "|" + "---|" * (len(labels) + 2),
    ]
    for (name, features), cells in rows.items():
        filled = " | ".join(cells.get(label, "") for label in labels)
        lines.append(f"| {name} | {features} | {filled} |")
    return [*lines, ""]


def cell(metric: dict[str, object]) -> str:
    """Value, floor in brackets, interval, number of samples."""
    shown = _shown(metric["value"])
    if metric["floor"] is not None:
        shown += f" ({_shown(metric['floor'])})"
    interval = metric.get("interval")
    if isinstance(interval, list):
        shown += f", {_shown(interval[0])} to {_shown(interval[1])}"
    return f"{shown}, n {metric['n']}"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
