"""A sweep's folder: `README.md` with what was chosen and why, tables and pictures, and
`sweep.json`.

Knows no checkpoint and no patches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from model.request import SamplingSettings
from pathar.contract import STREAMS, StreamName
from training.evaluation.choice import ALL, BOUNDS, NORMAL, RULE, Choice, Point, error
from training.evaluation.dots import Panel, picture
from training.evaluation.metric import Metric
from training.evaluation.report import replace
from training.evaluation.settings_text import WORDS, described, typed

FIGURES = {
    "fid": "FID",
    "kid": "KID",
    "recall": "recall",
    "pair_agreement": "Dice",
    "nuclei_ratio": "nuclei",
    "area_ratio": "area",
}
TITLES = {
    "kid": "KID, lower is better",
    "fid": "FID, lower is better",
    "recall": "recall, higher is better",
    "pair_agreement": "Dice of image and mask",
    "nuclei_ratio": "nuclei / real",
    "area_ratio": "area of a nucleus / real",
}
BY_NETWORK = ("kid", "fid", "recall")
SWEPT = ("cfg_scale", "temperature", "top_k")
NOTHING_BEYOND = {"cfg_scale": 1.0, "temperature": 0.0, "top_k": math.inf}
"""The ends of what the settings may be. Guidance 1 and top-k 0 are off, and 0 is the largest."""


@dataclass(frozen=True)
class Results:
    """What a sweep found: `facts` say what was measured and how, `network` is the one that pictures
    and choices stand on, `unmeasured` says of labels why they could not be measured, `choices` has
    one a label and that of the means under "all", and `stored` is the checkpoint's version with the
    chosen defaults, if they were stored."""

    facts: dict[str, object]
    network: str
    unmeasured: Mapping[str, str]
    points: list[Point]
    choices: Mapping[str, Choice]
    stored: str | None

    def best(self, label: str) -> Point:
        """The chosen point of a label, or of the means."""
        return self.points[self.choices[label].best]

    @property
    def overall(self) -> SamplingSettings:
        """What is drawn with where a label has no settings of its own."""
        return self.best(ALL).settings

    @property
    def of_labels(self) -> dict[str, SamplingSettings]:
        """The settings of labels for which others than the overall ones were chosen."""
        chosen = {label: self.best(label).settings for label in self.choices if label != ALL}
        return {label: best for label, best in chosen.items() if best != self.overall}

    def write(self, out: Path) -> None:
        """`sweep.json`, pictures and `README.md`."""
        document = {
            **self.facts,
            "not measured": dict(self.unmeasured),
            "rule": RULE,
            "chosen": {label: asdict(self.best(label).settings) for label in self.choices},
            "alike": {
                label: [asdict(self.points[place].settings) for place in choice.alike]
                for label, choice in self.choices.items()
            },
            "stored": self.stored,
            "points": [
                {
                    "settings": asdict(point.settings),
                    "verdicts": {label: held.verdicts[at] for label, held in self.choices.items()},
                    "metrics": [metric.as_json() for metric in point.metrics],
                }
                for at, point in enumerate(self.points)
            ],
        }
        replace(out / "sweep.json", json.dumps(document, indent=1) + "\n")
        for label in self.choices:
            self.picture(label).save(out / f"{_file(label)}.png")
        chapters = [line for label in self.choices for line in self.chapter(label)]
        replace(out / "README.md", "\n".join([*self.head(), *chapters]))

    def edges(self, label: str) -> list[str]:
        """The settings of a label whose best value is the last that was tried, by stream."""
        found = []
        for name in SWEPT:
            streams = [stream for stream in STREAMS if self._at_the_edge(label, name, stream)]
            if streams:
                whose = "both" if len(streams) == len(STREAMS) else streams[0]
                found.append(f"{WORDS[name]} of {whose}")
        return found

    def _at_the_edge(self, label: str, name: str, stream: StreamName) -> bool:
        tried = {_value(point.settings, name, stream) for point in self.points}
        best = _value(self.best(label).settings, name, stream)
        last = len(tried) > 1 and best in (min(tried), max(tried))
        return last and best != NOTHING_BEYOND[name]

    def head(self) -> list[str]:
        """The choices, what was measured, the rule."""
        kept = (
            f"Stored as the checkpoint's defaults, which makes it version {self.stored}."
            if self.stored
            else "Not stored: the same command with `--store` makes these the checkpoint's."
        )
        return [
            f"# Sampling settings of {self.facts['model']}",
            "",
            f"{kept} Labels that are not in the table are drawn with the settings of the first "
            "row. Guidance 1 and top-k 0 are off. Where a setting is at the edge of its grid, one "
            "beyond may do better.",
            "",
            f"| label | {_streams()} | verdict | at the edge of the grid |",
            "|" + "---|" * (len(STREAMS) + 3),
            *(
                f"| {_who(label)} | {_cells(self.best(label).settings)} "
                f"| {choice.verdicts[choice.best]} | {', '.join(self.edges(label))} |"
                for label, choice in self.choices.items()
            ),
            "",
            *(f"- {name}: {_listed(value)}" for name, value in self.facts.items()),
            f"- top-p of all points: {typed(self.overall.top_p)}",
            *(f"- {name} is not measured: {why}" for name, why in self.unmeasured.items()),
            "",
            "Samples have the seeds from 0 on, the same at every point. FID, KID and recall "
            "compare with real validation patches; the row `real` compares training patches with "
            "the same. Dice compares the nuclei that the checkpoint's segmenter finds in a "
            "sample's image with the sample's mask; `real` is the Dice of validation pairs. "
            "`nuclei` is the number in a sample divided by the number in a real patch, `area` the "
            "mean area of a nucleus divided by that in real patches; `real` is that of validation "
            "patches alone. The figure after ± is 1.96 standard errors. Patches of an organ are "
            "also patches of its modality. The points were chosen on these samples and patches, "
            "so a report on the same ones looks a little too good.",
            "",
            "## The rule",
            "",
            RULE,
            "",
        ]

    def chapter(self, label: str) -> list[str]:
        """One label's picture and table."""
        heading = _who(label).capitalize()
        alike = "; ".join(
            described(self.points[place].settings) for place in self.choices[label].alike
        )
        return [
            f"## {heading}",
            "",
            f"![{heading}]({_file(label)}.png)",
            "",
            f"Others that pass, with a KID within noise of the chosen one's: {alike or 'none'}.",
            "",
            *self.table(label),
        ]

    def table(self, label: str) -> list[str]:
        """A row a point, a column a figure."""
        shown = [key for key in self.points[0].of(label) if key[0] in FIGURES]
        headings = [f"{FIGURES[name]} {network}".strip() for name, network in shown]
        real = [_number(self.points[0].of(label)[key].floor) for key in shown]
        lines = [
            f"| {_streams()} | {' | '.join(headings)} | verdict |",
            "|" + "---|" * (len(STREAMS) + len(shown) + 1),
            f"| real {'| ' * len(STREAMS)}{' | '.join(real)} | |",
        ]
        for point, verdict in zip(self.points, self.choices[label].verdicts, strict=True):
            cells = " | ".join(_cell(point.of(label)[key]) for key in shown)
            lines.append(f"| {_cells(point.settings)} | {cells} | {verdict} |")
        return [*lines, ""]

    def picture(self, label: str) -> Image.Image:
        """The figures of a label, a row a point; by the first network."""
        panels = []
        for name, title in TITLES.items():
            network = self.network if name in BY_NETWORK else ""
            metrics = [point.of(label)[name, network] for point in self.points]
            dots = [(metric.value, NORMAL * error([metric])) for metric in metrics]
            panels.append(Panel(title, dots, metrics[0].floor, BOUNDS.get(name)))
        rows = [
            (", ".join(f"{WORDS[each]} {typed(getattr(point.settings, each))}" for each in SWEPT),
             verdict.split(",")[0].split(":")[0] or "passes")
            for point, verdict in zip(self.points, self.choices[label].verdicts, strict=True)
        ]  # fmt: skip
        title = f"{self.facts['model']}, {_who(label)}; features of {self.network}"
        return picture(title, rows, panels)


def _value(settings: SamplingSettings, name: str, stream: StreamName) -> float:
    value = settings.of_stream(stream)[name]
    return math.inf if name == "top_k" and value == 0 else value


def _streams() -> str:
    """Headings of the columns that `_cells` fills."""
    names = ", ".join(WORDS[name] for name in SWEPT)
    return " | ".join(f"{stream}: {names}" for stream in STREAMS)


def _cells(settings: SamplingSettings) -> str:
    return " | ".join(
        ", ".join(typed(settings.of_stream(stream)[name]) for name in SWEPT) for stream in STREAMS
    )


def _who(label: str) -> str:
    return "mean over labels" if label == ALL else label


def _file(label: str) -> str:
    return "sweep" if label == ALL else f"sweep_{label}"


def _listed(value: object) -> str:
    return (", ".join(map(str, value)) or "any") if isinstance(value, list) else str(value)


def _cell(metric: Metric) -> str:
    noise = f" ± {NORMAL * error([metric]):.2g}" if metric.interval else ""
    return _number(metric.value) + noise


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
