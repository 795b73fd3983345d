"""Chooses the model of a request, when workers serve several.

A name means one model at a time. While two versions are served, for example during an update,
requests go to the version whose workers started last. Jobs that were accepted earlier keep their
version. Knows neither Redis nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.request import ModelInfo, RequestError
from store.registry import KnownModel


def offered(models: Sequence[KnownModel]) -> list[KnownModel]:
    """One model for each name, ordered by name, from the list of `Registry.models`."""
    first: dict[str, KnownModel] = {}
    for known in models:
        first.setdefault(known.info.name, known)
    return [first[name] for name in sorted(first)]


def choose(models: Sequence[KnownModel], label: str, name: str | None) -> ModelInfo:
    """The model for a request: the one with this `name`, or without a name the only one with this
    `label`.

    Models without a live worker count only when no other model has the label. RequestError when
    there is no such model or label, or when several models have the label and no name is given.
    """
    known = offered(models)
    if name is not None:
        return _named(known, label, name)
    having = [model for model in known if label in model.info.label_names()]
    having = [model for model in having if model.ready] or having
    if not having:
        names = (each for model in known for each in model.info.label_names())
        raise RequestError("label", label, f"one of {_listed(names)}")
    if len(having) > 1:
        names = (model.info.name for model in having)
        expected = f"one of {_listed(names)}, which all have the label {label!r}"
        raise RequestError("model", None, expected)
    return having[0].info


def _named(known: Sequence[KnownModel], label: str, name: str) -> ModelInfo:
    for model in known:
        if model.info.name == name:
            break
    else:
        names = (model.info.name for model in known)
        raise RequestError("model", name, f"one of {_listed(names)}")
    if label not in model.info.label_names():
        labels = _listed(model.info.label_names())
        raise RequestError("label", label, f"a label of the model {name!r}: {labels}")
    return model.info


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
