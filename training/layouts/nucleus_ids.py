"""Ids and classes of nuclei, for layouts that know both one by one.

Ids are int32 [H, W] with 0 outside nuclei. Classes are the numbers that a data set publishes, with
their names. Knows no files of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.layouts.original import organ_name
from training.pictures import GROUND, SHOWN, Painting
from training.rasters import SourceError


def whole_numbers(path: Path, what: str, values: np.ndarray) -> np.ndarray:
    """Values of any type as int32 of the same shape; `what` names them. SourceError where some are
    no whole numbers from 0.
    """
    if values.dtype.kind not in "biuf":
        raise SourceError(f"{path}: {what} has values of type {values.dtype}, expected numbers")
    whole = values
    if values.dtype.kind == "f":
        whole = np.rint(np.nan_to_num(values, nan=-1.0, posinf=-1.0, neginf=-1.0))
    low, high = whole.min(initial=0), whole.max(initial=0)
    if not (np.array_equal(whole, values) and low >= 0 and high < 2**31):
        raise SourceError(
            f"{path}: {what} has values from {values.min():g} to {values.max():g}, expected whole "
            "numbers from 0"
        )
    return whole.astype(np.int32)


def chosen_classes(words: Sequence[str], names: Mapping[int, str]) -> frozenset[int]:
    """The classes that the user's words say, each a number or a name of `names` in any case; all
    of them without words. SourceError at any other word.
    """
    if tuple(words) in ((), ("ids",)):
        return frozenset(names)
    of_word = {organ_name(name): number for number, name in names.items()}
    of_word |= {str(number): number for number in names}
    chosen = set()
    for word in words:
        if organ_name(word) not in of_word:
            listed = ", ".join(f"{name} ({number})" for number, name in sorted(names.items()))
            classes = f"expected some of {listed}" if listed else "but this layout has no classes"
            raise SourceError(f"--nuclei: got {word!r}, {classes}")
        chosen.add(of_word[organ_name(word)])
    return frozenset(chosen)


def usual_classes(ids: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur, ascending, and the class of each: that of most of its pixels in the map
    `classes`, int32 [H, W], which is 0 where a pixel has none; 0 where none of its pixels has one.
    """
    inside = ids > 0
    numbers, places = np.unique(ids[inside], return_inverse=True)
    counts = np.zeros((len(numbers), int(classes.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(counts, (places, classes[inside]), 1)
    counts[:, 0] = 0
    return numbers, counts.argmax(1)


def of_classes(
    ids: np.ndarray, numbers: np.ndarray, classes: np.ndarray, chosen: frozenset[int]
) -> np.ndarray:
    """Ids without the nuclei of other classes; `classes` belong to the ids `numbers`, in order."""
    kept = numbers[np.isin(classes, list(chosen))]
    return np.where(np.isin(ids, kept), ids, 0)


def one_nucleus(painting: Painting) -> np.ndarray:
    """The mask of a single nucleus, bool [H, W]. SourceError where it has several values."""
    painted = painting.values != GROUND
    values = np.unique(painting.values[painted]).tolist()
    if len(values) > 1:
        raise SourceError(
            f"{painting.path}: has the values {', '.join(map(str, values[:SHOWN]))} outside its "
            "ground, expected one, as the mask of one nucleus has"
        )
    return np.asarray(painted)


def laid_over(ids: np.ndarray, layer: np.ndarray, number: int) -> None:
    """Give the pixels of a bool layer that no nucleus has yet to nucleus `number`, in place."""
    ids[layer & (ids == 0)] = number
