"""How good a pair is, as its record says, and which pairs a filter keeps.

Knows nothing of jobs, folders and services.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pathar.contract import IMAGE_NAME, record_of
from pathar.errors import InternalError


class LogLikelihood(NamedTuple):
    """Of a pair's tokens by the prior, in nats, for each stream."""

    structure: float
    appearance: float


@dataclass(frozen=True)
class Quality:
    """`nuclei`: how many the mask has. `agreement`: the Dice of the mask and what the checkpoint's
    segmenter finds in the image, 1 where both are empty; None where the checkpoint has none.
    """

    nuclei: int
    agreement: float | None
    log_likelihood: LogLikelihood

    @property
    def scored(self) -> float:
        """The agreement. ValueError where it is not known."""
        if self.agreement is None:
            raise ValueError("the checkpoint has no segmenter")
        return self.agreement

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Quality:
        """As the record of the image says. InternalError where it says nothing."""
        try:
            return cls.from_record(record_of(files[IMAGE_NAME]))
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError(f"{IMAGE_NAME} does not say its quality: {error!r}") from None

    @classmethod
    def from_record(cls, told: Mapping[str, Any]) -> Quality:
        """From the record of a PNG, or from an image in an answer. KeyError, TypeError."""
        likelihood = told["log_likelihood"]
        streams = LogLikelihood(likelihood["structure"], likelihood["appearance"])
        return cls(told["nuclei"], told.get("agreement"), streams)


def passing(found: Sequence[Quality], best_of: int, least: float | None) -> list[int]:
    """The places of the pairs that a filter keeps: of each `best_of` in a row the best one, if its
    agreement is `least` or more. ValueError where an agreement is not known.

    The best has the highest agreement and, of several, the highest log-likelihood. Pairs with
    nuclei and pairs without are not compared, since two empty masks always agree: the first of a
    row decides which of them count.
    """
    kept = []
    for start in range(0, len(found), best_of):
        row = range(start, min(start + best_of, len(found)))
        alike = [at for at in row if bool(found[at].nuclei) == bool(found[start].nuclei)]
        best = max(alike, key=lambda at: (found[at].scored, sum(found[at].log_likelihood)))
        if least is None or found[best].scored >= least:
            kept.append(best)
    return kept


BINS = 20
"""Of a histogram of agreement, from 0 to 1."""


@dataclass
class Tally:
    """What is counted of a label's pairs. `agreement_drawn` and `agreement_kept` are histograms of
    BINS bins each, of the pairs whose agreement is known; `nuclei` has the number of kept pairs by
    how many nuclei they have.
    """

    drawn: int = 0
    kept: int = 0
    agreement_drawn: list[int] = field(default_factory=lambda: [0] * BINS)
    agreement_kept: list[int] = field(default_factory=lambda: [0] * BINS)
    nuclei: dict[str, int] = field(default_factory=dict)

    def draw(self, quality: Quality) -> None:
        """Count a pair that was drawn."""
        self.drawn += 1
        _count(self.agreement_drawn, quality)

    def keep(self, quality: Quality) -> None:
        """Count a pair that is part of the data set."""
        self.kept += 1
        _count(self.agreement_kept, quality)
        name = str(quality.nuclei)
        self.nuclei[name] = self.nuclei.get(name, 0) + 1

    def __add__(self, other: Tally) -> Tally:
        counts = sorted({*map(int, self.nuclei), *map(int, other.nuclei)})
        return Tally(
            self.drawn + other.drawn,
            self.kept + other.kept,
            [a + b for a, b in zip(self.agreement_drawn, other.agreement_drawn, strict=True)],
            [a + b for a, b in zip(self.agreement_kept, other.agreement_kept, strict=True)],
            {str(n): self.nuclei.get(str(n), 0) + other.nuclei.get(str(n), 0) for n in counts},
        )


def _count(histogram: list[int], quality: Quality) -> None:
    if quality.agreement is not None:
        histogram[min(int(quality.agreement * BINS), BINS - 1)] += 1


def totals(labels: Iterable[str], shards: Iterable[Mapping[str, Any]]) -> dict[str, Tally]:
    """By label, from what the records of all shards have as `quality`."""
    found = dict.fromkeys(labels, Tally())
    for shard in shards:
        for label, told in shard["quality"].items():
            found[label] += Tally(**told)
    return found
