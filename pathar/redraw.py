"""Draws pairs again by their records: with an engine in this process, or by a service.

Knows nothing of verdicts but the one that it gives where it cannot draw.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathar.client import Client
from pathar.contract import IMAGE_NAME, LARGEST_SIDE, MAX_SIDE, InvalidRequest
from pathar.errors import CommandError
from pathar.local_engine import local_engine
from pathar.provenance import CONSISTENT, Model, Origin, Verdict
from pathar.records import read_png

if TYPE_CHECKING:
    from model.engine import Engine
    from model.request import ImageRequest, ModelInfo

AHEAD = 16
"""Pairs that a service is asked for at once."""
Drawn = Mapping[str, bytes] | Verdict


@contextmanager
def model_at(url: str | None, env: Mapping[str, str]) -> Iterator[Model]:
    """The model of the service at `url`, or of the checkpoint here. UsageError, CommandError."""
    if url is None:
        yield EngineHere(*local_engine(env, "verify --regenerate"))
    else:
        with Client(url) as client:
            yield ServiceThere(client)


class EngineHere:
    """An engine in this process."""

    def __init__(self, engine: Engine, info: ModelInfo) -> None:
        from worker.images import made_with

        self._engine, self._info, self._facts = engine, info, made_with(engine)
        self.ahead = engine.slots

    def draw(self, origins: Sequence[Origin]) -> list[Drawn]:
        """See `Model.draw`."""
        from worker.drawing import draw

        requests = [self._request(origin) for origin in origins]
        wanted = [each for each in requests if not isinstance(each, Verdict)]
        files = iter([made for _, made in sorted(draw(self._engine, wanted), key=_position)])
        return [each if isinstance(each, Verdict) else next(files) for each in requests]

    def render(self, origin: Origin) -> Mapping[str, bytes] | None:
        """See `Model.render`."""
        from model.engine import TokenGrids
        from worker.images import image_files

        request, tokens = self._request(origin), origin.tokens
        if tokens is None or isinstance(request, Verdict):
            return None
        grids = TokenGrids(*tokens)
        return image_files(self._engine.render(grids), grids, request, self._info, self._facts)

    def _request(self, origin: Origin) -> ImageRequest | Verdict:
        """What to draw, or the verdict where this model cannot."""
        from model.given_forms import read_given
        from model.request import SIDES, ImageRequest, RequestError
        from worker.images import check_image

        record, tokens = origin.record, origin.tokens
        if record["model_version"] != self._info.version:
            return _unknown(record, f"{self._info.name} {self._info.version[:12]}")
        if tokens is None and any(given_streams(record)):
            return Verdict("authentic", CONSISTENT)
        fields = {name: record[name] for name in ("label", "seed", "settings")}
        size = [record[name] for name in SIDES] if SIDES[0] in record else None
        try:
            structure, appearance = given_forms(origin)
            fields |= {"size": size}
            whole = ImageRequest.from_dict(fields)
            given = read_given(structure, appearance, self._info, whole.size)
            request = replace(whole, given=given)
            check_image(request, self._info, LARGEST_SIDE)
        except (RequestError, TypeError, KeyError) as error:
            return Verdict("altered", f"{record['file']} has a record of no request ({error})")
        if tokens is not None and not self._fits(tokens, request):
            return Verdict("altered", f"{record['file']} has tokens that the model does not have")
        return request

    def _fits(self, tokens: NDArray[np.int64], request: ImageRequest) -> bool:
        shape = (2, *self._info.grid(request.size))
        return tokens.shape == shape and bool((tokens < self._info.codebook_size).all())


class ServiceThere:
    """A service, which draws with the numerics of its workers."""

    ahead = AHEAD

    def __init__(self, client: Client) -> None:
        self._client = client
        self._served: dict[str, str | None] = {}
        """The version that the service has of each model that was asked for; None for no model."""

    def draw(self, origins: Sequence[Origin]) -> list[Drawn]:
        """See `Model.draw`."""
        asked = [self._ask(origin) for origin in origins]
        return [
            each if isinstance(each, Verdict) else self._fetch(each, origin.record)
            for each, origin in zip(asked, origins, strict=True)
        ]

    def render(self, _: Origin) -> None:
        """See `Model.render`: a service draws its own tokens only."""

    def _ask(self, origin: Origin) -> str | Verdict:
        """The id of a job that draws the pair."""
        record, given = origin.record, {}
        name = record["model"]
        if any(given_streams(record)):
            if origin.tokens is None:
                return Verdict("authentic", CONSISTENT)
            forms = zip(("structure", "appearance"), given_forms(origin), strict=True)
            given = {field: form for field, form in forms if form is not None}
        size = {name: record[name] for name in ("width", "height") if name in record}
        if any(type(side) is int and side > MAX_SIDE for side in size.values()):
            return Verdict("authentic", f"{CONSISTENT}, which no service does at this size")
        if name in self._served and self._served[name] != record["model_version"]:
            return _unknown(record, self._served[name] or "no model of this name")
        try:
            settings = {
                "seed": record["seed"],
                "priority": "bulk",
                **record["settings"],
                **given,
                **size,
            }
            return self._client.submit(record["label"], model=name, **settings).id
        except InvalidRequest as error:
            if any(each["field"] == "model" for each in error.errors):
                self._served[name] = None
                return _unknown(record, "no model of this name")
            return Verdict("altered", f"{record['file']} has a record of no request ({error})")

    def _fetch(self, job_id: str, record: Mapping[str, Any]) -> Drawn:
        (pair,) = self._client.pairs(job_id)
        files = pair.files()
        drawn = read_png(IMAGE_NAME, files[IMAGE_NAME]).record
        if not drawn:
            raise CommandError("the service draws files without a record: it is another version")
        self._served[record["model"]] = version = drawn["model_version"]
        return files if version == record["model_version"] else _unknown(record, version)


def given_streams(record: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether structure and appearance were given, wholly or in part."""
    return bool(record["given_structure"]), bool(record.get("given_appearance"))


def given_forms(origin: Origin) -> list[Mapping[str, Any] | None]:
    """What was given of structure and appearance, as requests have it: tokens, None in rows where
    one was drawn."""
    if origin.tokens is None:
        return [None, None]
    forms: list[Mapping[str, Any] | None] = []
    streams = zip(given_streams(origin.record), ("structure", "appearance"), strict=True)
    for (given, name), ids in zip(streams, origin.tokens, strict=True):
        kept = _kept(origin.record.get(f"kept_{name}"), ids.size).reshape(ids.shape)
        rows = [[int(t) if k else None for t, k in zip(*row, strict=True)]
                for row in zip(ids, kept, strict=True)]  # fmt: skip
        forms.append({"tokens": rows} if given else None)
    return forms


def _kept(text: object, count: int) -> NDArray[np.bool_]:
    """The locations that a record says were kept; all where it says nothing readable."""
    try:
        bits = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        bits = b""
    if len(bits) != -(-count // 8):
        return np.ones(count, bool)
    return np.unpackbits(np.frombuffer(bits, np.uint8))[:count].astype(bool)


def _unknown(record: Mapping[str, Any], here: str) -> Verdict:
    wanted = f"{record['model']} {record['model_version'][:12]}"
    return Verdict("unknown-model", f"consistent, but drawn by {wanted}; here is {here[:80]}")


def _position(drawn: tuple[int, Mapping[str, bytes]]) -> int:
    return drawn[0]
