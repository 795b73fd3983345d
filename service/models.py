"""Chooses the model of a request, when workers serve several.

A name means one model at a time. While two versions are served, for example during an update,
requests go to the version whose workers started last. Jobs that were accepted earlier keep their
version. Knows neither Redis nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.request import ModelInfo, RequestError, at_scale
from store.registry import KnownModel


def offered(models: Sequence[KnownModel]) -> list[KnownModel]:
    """One model for each name, ordered by name, from the list of `Registry.models`."""
    first: dict[str, KnownModel] = {}
    for known in models:
        first.setdefault(known.info.name, known)
    return [first[name] for name in sorted(first)]


def choose(
    models: Sequence[KnownModel], labels: Sequence[str], name: str | None, scale: float = 1.0
) -> ModelInfo:
    """The model for a request: the one with this `name`, or without a name the only one with all of
    these `labels` at this `scale`.

    Models without a live worker count only when no other model has them. RequestError when there is
    no such model or label, or when several models have the labels and no name is given.
    """
    known = offered(models)
    asked = [model for model in known if name in (None, model.info.name)]
    names = [each for model in asked for each in model.info.label_names()]
    field, labels = "label" if len(labels) == 1 else "labels", at_scale(labels, scale, names)
    if name is not None:
        return _named(known, labels, name, field)
    having = [model for model in known if set(labels) <= set(model.info.label_names())]
    having = [model for model in having if model.ready] or having
    if not having:
        names = list(dict.fromkeys(n for model in known for n in model.info.label_names()))
        unknown = [label for label in labels if label not in names]
        expected = f"one of {', '.join(names)}" if unknown else "labels of one model"
        raise RequestError(field, (unknown or [", ".join(labels)])[0], expected)
    if len(having) > 1:
        names = [model.info.name for model in having]
        what = f"the {field} {', '.join(map(repr, labels))}"
        raise RequestError("model", None, f"one of {_listed(names)}, which all have {what}")
    return having[0].info


def _named(known: Sequence[KnownModel], labels: Sequence[str], name: str, field: str) -> ModelInfo:
    for model in known:
        if model.info.name == name:
            break
    else:
        names = (model.info.name for model in known)
        raise RequestError("model", name, f"one of {_listed(names)}")
    for label in labels:
        if label not in model.info.label_names():
            its = _listed(model.info.label_names())
            raise RequestError(field, label, f"a label of the model {name!r}: {its}")
    return model.info


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
