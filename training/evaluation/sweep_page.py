"""A sweep's folder: `README.md` with what was chosen and why, tables and curves, and `sweep.json`.

Knows no checkpoint and no patches.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from model.request import SamplingSettings
from training.evaluation.choice import ALL, NORMAL, RULE, Choice, Point, error
from training.evaluation.curves import Panel, picture
from training.evaluation.metric import Metric
from training.evaluation.report import replace

FIGURES = {"fid": "FID", "kid": "KID", "pair_agreement": "Dice", "nuclei_ratio": "nuclei"}
TITLES = {
    "fid": "FID, lower is closer to real patches",
    "kid": "KID, lower is closer to real patches",
    "pair_agreement": "Dice of image and mask",
    "nuclei_ratio": "nuclei a sample / a real patch",
}
LEGEND = "dashed: real patches; bars: 95%; ring: chosen.    temperature:"


@dataclass(frozen=True)
class Results:
    """What a sweep found: `facts` say what was measured and how, `network` is the one that curves
    and choice stand on, `few` counts the patches of labels that had too few to be measured, and
    `stored` is the checkpoint's version with the chosen defaults, if they were stored."""

    facts: dict[str, object]
    network: str
    labels: list[str]
    few: dict[str, int]
    points: list[Point]
    choice: Choice
    stored: str | None

    @property
    def best(self) -> Point:
        """The chosen point."""
        return self.points[self.choice.best]

    def write(self, out: Path) -> None:
        """`sweep.json`, pictures and `README.md`."""
        document = {
            **self.facts,
            "rule": RULE,
            "chosen": asdict(self.best.settings),
            "alike": [asdict(self.points[place].settings) for place in self.choice.alike],
            "stored": self.stored,
            "points": [
                {
                    "settings": asdict(point.settings),
                    "verdict": verdict,
                    "metrics": [metric.as_json() for metric in point.metrics],
                }
                for point, verdict in zip(self.points, self.choice.verdicts, strict=True)
            ],
        }
        replace(out / "sweep.json", json.dumps(document, indent=1) + "\n")
        labels = [ALL, *self.labels]
        for label in labels:
            self.curves(label).save(out / f"{_file(label)}.png")
        page = [*self.head(), *(line for label in labels for line in self.chapter(label))]
        replace(out / "README.md", "\n".join(page))

    def edges(self) -> list[str]:
        """A line, and an empty one, on each setting whose best value is its grid's last."""
        lines = []
        for name in ("cfg_scale", "temperature"):
            tried = sorted({getattr(point.settings, name) for point in self.points})
            best = getattr(self.best.settings, name)
            # Guidance 1 is off: nothing lies beyond it.
            beyond = best == tried[-1] or (best == tried[0] and (name, best) != ("cfg_scale", 1))
            if len(tried) > 1 and beyond:
                word = "guidance" if name == "cfg_scale" else name
                lines += [
                    f"The {word} chosen is at the edge of its grid: one beyond may do better.",
                    "",
                ]
        return lines

    def head(self) -> list[str]:
        """The choice, what was measured, the rule."""
        settings, verdict = self.best.settings, self.choice.verdicts[self.choice.best]
        alike = "; ".join(described(self.points[place].settings) for place in self.choice.alike)
        kept = (
            f"Stored as the checkpoint's defaults, which makes it version {self.stored}."
            if self.stored
            else "Not stored: the same command with `--store` makes it the checkpoint's default."
        )
        few = [
            f"- {name} is not measured: too few validation or training patches, {count}"
            for name, count in self.few.items()
        ]
        return [
            f"# Guidance and temperature of {self.facts['model']}",
            "",
            f"**{described(settings).capitalize()}**, top-k {settings.top_k}, "
            f"top-p {settings.top_p:g}: {verdict}. {kept}",
            "",
            f"Others that pass, with a KID within noise of its own: {alike or 'none'}.",
            "",
            *self.edges(),
            *(f"- {name}: {_listed(value)}" for name, value in self.facts.items()),
            *few,
            "",
            "Samples have the seeds from 0 on, the same at every point. FID and KID compare with "
            "real validation patches; the row `real` compares training patches with the same. "
            "Dice compares the nuclei that the checkpoint's segmenter finds in a sample's image "
            "with the sample's mask; `real` is the Dice of validation pairs. `nuclei` is the "
            "number in a sample divided by the number in a real patch; `real` is that of "
            "validation patches alone. The figure after ± is 1.96 standard errors. The point was "
            "chosen on these samples and patches, so a report on the same ones looks a little "
            "too good.",
            "",
            "## The rule",
            "",
            RULE,
            "",
        ]

    def chapter(self, label: str) -> list[str]:
        """One label's curves and table."""
        heading = "Mean over labels" if label == ALL else label.capitalize()
        return [f"## {heading}", "", f"![{heading}]({_file(label)}.png)", "", *self.table(label)]

    def table(self, label: str) -> list[str]:
        """A row a point, a column a figure; what is said of a point stands by the means alone."""
        shown = [key for key in self.best.of(label) if key[0] in FIGURES]
        headings = [f"{FIGURES[name]} {network}".strip() for name, network in shown]
        real = [_number(self.best.of(label)[key].floor) for key in shown]
        lines = [
            f"| guidance | temperature | {' | '.join(headings)} | |",
            "|" + "---|" * (len(shown) + 3),
            f"| real | | {' | '.join(real)} | |",
        ]
        for point, verdict in zip(self.points, self.choice.verdicts, strict=True):
            cells = " | ".join(_cell(point.of(label)[key]) for key in shown)
            settings = point.settings
            swept = f"{settings.cfg_scale:g} | {settings.temperature:g}"
            lines.append(f"| {swept} | {cells} | {verdict if label == ALL else ''} |")
        return [*lines, ""]

    def curves(self, label: str) -> Image.Image:
        """The figures of a label against guidance, a line a temperature; by the first network."""
        panels = []
        for name, title in TITLES.items():
            network = self.network if name in ("fid", "kid") else ""
            lines: dict[str, list[tuple[float, float, float]]] = {}
            for point in self.points:
                metric = point.of(label)[name, network]
                dot = point.settings.cfg_scale, metric.value, NORMAL * error([metric])
                lines.setdefault(f"{point.settings.temperature:g}", []).append(dot)
            best = f"{self.best.settings.temperature:g}", self.best.settings.cfg_scale
            panels.append(Panel(title, lines, self.best.of(label)[name, network].floor, best))
        who = "mean over labels" if label == ALL else label
        title = f"{self.facts['model']}, {who}; features of {self.network}"
        return picture(title, "guidance", panels, LEGEND)


def described(settings: SamplingSettings) -> str:
    """The two settings that are swept."""
    return f"guidance {settings.cfg_scale:g}, temperature {settings.temperature:g}"


def _file(label: str) -> str:
    return "sweep" if label == ALL else f"sweep_{label}"


def _listed(value: object) -> str:
    return (", ".join(map(str, value)) or "any") if isinstance(value, list) else str(value)


def _cell(metric: Metric) -> str:
    noise = f" ± {NORMAL * error([metric]):.2g}" if metric.interval else ""
    return _number(metric.value) + noise


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
