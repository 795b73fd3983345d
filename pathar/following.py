"""Follows a data set that a service draws as one job, and downloads its shards as they are stored.

It is a flow like those of `flows.py`. Every step can be repeated: the same recipe finds the same
data set, and a shard that is safe on disk is not downloaded again. Knows no sockets and no formats.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

from pathar import flows
from pathar.contract import is_job_id
from pathar.dataset_folder import DatasetFolder, refuse_model
from pathar.errors import InternalError, JobCanceled, JobFailed, NotFound
from pathar.flows import Flow, Give, Pause, Send
from pathar.manifest import MANIFEST
from pathar.recipe import ModelRef
from pathar.retries import PASSING, Patience, Waiting

LOOK_S = 1.0
"""Pause between two questions how far the data set is."""
MADE = 201
STEP_S = 10.0
"""How long one step is retried before the trouble is shown."""


@dataclass(frozen=True)
class Progress:
    """How far a pull is: pairs that are safe on disk, and drawn ones that are not yet.

    `ahead`: images of all clients that are drawn before the next pair, as far as is known.
    `dataset`: the id of the data set that the service draws by itself.
    """

    safe: int
    drawn: int = 0
    ahead: int = 0
    trouble: str = ""
    """Why nothing moves at the moment."""
    dataset: str = ""


class Following:
    """One run of a pull from a service that offers data sets."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder, self._plan = folder, folder.plan
        self._resumed = False

    def all(self, waiting: Waiting) -> Flow[None]:
        """Download what is missing, and complete the folder. Passing trouble ends it, and it can be
        begun again. NotOffered, JobFailed, JobCanceled.
        """
        while True:
            state = yield from self._asked(waiting)
            try:
                yield from self._followed(state, waiting)
                break
            except NotFound:  # it was deleted meanwhile: ask for it anew
                yield Pause(LOOK_S)
        own = self._folder.own()
        if own is not None:
            with suppress(NotFound, *PASSING):  # it would stay, as one does that another made
                yield from _json(Send("DELETE", _path(own), params={"files": "true"}), waiting)
        self._folder.close()

    def _asked(self, waiting: Waiting) -> Flow[dict[str, Any]]:
        """The data set of the recipe, which is made where it is not there yet."""
        send = Send("POST", "/datasets", self._plan.recipe.to_dict())
        waiting.begin()
        answer = yield from flows.answered(send, Waiting(_step()))
        waiting.answered()
        state = flows.read_json(answer, send.path, dict[str, Any])
        if answer.status_code == MADE:
            self._folder.note_own(state["dataset_id"])
        for label, model in state["models"].items():
            refuse_model(self._folder.out, self._plan.models[label], ModelRef(**model))
        if state["status"] == "failed" and not self._resumed:
            self._resumed = True
            resume = Send("POST", f"{_path(state['dataset_id'])}/resume")
            state = yield from _json(resume, waiting)
        return state

    def _followed(self, state: dict[str, Any], waiting: Waiting) -> Flow[None]:
        """Download each shard once it is stored, and all else once the data set is complete."""
        path = _path(state["dataset_id"])
        while True:
            yield Give(self._progress(state))
            for shard in state["shards"]:
                if not self._folder.has(shard["number"]):
                    yield from self._shard(path, shard["number"], waiting)
                    yield Give(self._progress(state))
            match state["status"]:
                case "finished":
                    yield from self._rest(path, waiting)
                    return
                case "failed":
                    raise JobFailed(f"data set {state['dataset_id']} failed: {state['error']}")
                case "canceled":
                    raise JobCanceled(f"data set {state['dataset_id']} was canceled")
            yield Pause(LOOK_S)
            state = yield from _json(Send("GET", path), waiting)

    def _progress(self, state: Mapping[str, Any]) -> Progress:
        safe, trouble = self._folder.safe, state["trouble"] or ""
        if state["status"] == "paused":
            trouble = f"data set {state['dataset_id']} is paused"
        drawn = max(0, state["pairs_kept"] - safe)
        return Progress(safe, drawn, trouble=trouble, dataset=state["dataset_id"])

    def _shard(self, path: str, number: int, waiting: Waiting) -> Flow[None]:
        told = yield from _json(Send("GET", f"{path}/shards/{number}"), waiting)
        names = ("path", "bytes", "sha256")
        files = [{name: each[name] for name in names} for each in told["files"]]
        for facts in files:
            yield from self._file(path, facts, waiting)
        record = {"pairs": told["pairs"], "files": files, "quality": told["quality"]}
        self._folder.record(number, record)

    def _rest(self, path: str, waiting: Waiting) -> Flow[None]:
        text = io.BytesIO()
        yield from _fetched(f"{path}/files/{MANIFEST}", text, waiting)
        for facts in self._folder.beside(text.getvalue()):
            yield from self._file(path, facts, waiting)
        self._folder.finish_as(text.getvalue())

    def _file(self, path: str, facts: Mapping[str, Any], waiting: Waiting) -> Flow[None]:
        with self._folder.adding(facts) as file:
            yield from _fetched(f"{path}/files/{quote(facts['path'])}", file, waiting)


def _fetched(path: str, file: BinaryIO, waiting: Waiting) -> Flow[None]:
    waiting.begin()
    yield from flows.fetch(path, file, _step())
    waiting.answered()


def _json(send: Send, waiting: Waiting) -> Flow[dict[str, Any]]:
    waiting.begin()
    answer = yield from flows.ask(send, Waiting(_step()), dict[str, Any])
    waiting.answered()
    return answer


def _step() -> Patience:
    """The patience of one step, with a service that has answered."""
    return Patience(STEP_S, reached=True)


def _path(dataset_id: str) -> str:
    if not is_job_id(dataset_id):
        raise InternalError(f"got {dataset_id[:100]!r} for the id of a data set")
    return f"/datasets/{dataset_id}"
