"""One figure of a report, and what it is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A figure as `report.json` holds it.

    `floor` is the same figure for real against real (None where that means nothing), `features`
    names the frozen network behind it ("" for none), `n` counts the samples, `label` is what was
    asked for ("all" over labels), `interval` a 95% confidence interval where one was taken.
    """

    name: str
    value: float
    floor: float | None
    features: str
    n: int
    label: str
    interval: tuple[float, float] | None = None

    def as_json(self) -> dict[str, object]:
        """The JSON object; a value that is not a number becomes null."""
        record: dict[str, object] = {
            "name": self.name,
            "value": _finite(self.value),
            "floor": _finite(self.floor),
            "features": self.features,
            "n": self.n,
            "label": self.label,
        }
        if self.interval:
            record["interval"] = [_finite(bound) for bound in self.interval]
        return record


@dataclass(frozen=True)
class Missing:
    """A figure that could not be taken here, and the file or package that it needs."""

    name: str
    needs: str


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
