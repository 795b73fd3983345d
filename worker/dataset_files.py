"""The files of a data set in the storage of results: the shards, and at the end all else.

They lie as `pathar pull` writes them into a folder, with the same bytes. What only writers and the
API read lies in HIDDEN beside them: a record of each shard, which is written after its files, and
the pictures of the contact sheet until that is made. Knows no Redis and no jobs.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, cast

from pathar.contact_sheet import SheetRow
from pathar.contract import IMAGE_NAME, MASK_NAME
from pathar.manifest import MANIFEST, SHOWN, files_beside, manifest
from pathar.quality import Tally
from pathar.recipe import Plan
from pathar.shards import STREAMED, WRITERS, PulledPair
from runtime.objects import Objects, Sink
from store.datasets import Shard, record_path

BATCH = 64
"""Small files that are stored at once."""
HIDDEN_SHEET = ".pathar/sheet"
HIDDEN_ROUNDS = ".pathar/rounds"
"""What filters keep of drawn jobs until its shard is stored: `dataset_rounds.py`."""


class FilesGone(Exception):
    """What an earlier turn has stored is not there any more."""


@dataclass
class DatasetFiles:
    """The files of the data set with this plan, below `folder`."""

    objects: Objects
    folder: str
    plan: Plan

    def write_shard(
        self,
        number: int,
        pairs: Iterable[PulledPair],
        tallies: Mapping[str, Tally],
        tick: Callable[[], None],
    ) -> Shard:
        """Store a shard from its pairs, which count in `tallies`; calls `tick` for each. Its record
        is stored last. ObjectsAway, and whatever `pairs` and `tick` raise: then there is none.
        """
        wanted = self.plan.shards[number]
        into = _Into(self.objects, self.folder, stream=self.plan.recipe.format in STREAMED)

        def seen() -> Iterator[PulledPair]:
            for at, pair in zip(wanted, pairs, strict=True):
                tick()
                self._show(at, pair)
                yield pair

        WRITERS[self.plan.recipe.format](seen(), f"pairs-{number:05d}", into.put)
        into.flush()
        quality = {label: asdict(tally) for label, tally in tallies.items()}
        told = {"pairs": len(wanted), "files": into.facts, "quality": quality}
        self._put(record_path(number), json.dumps(told).encode())
        size = sum(facts["bytes"] for facts in into.facts)
        drawn = sum(tally.drawn for tally in tallies.values())
        digest = into.digest.hexdigest()
        return Shard(number, len(wanted), drawn, len(into.facts), size, digest)

    def finish(self) -> None:
        """Store what a complete data set has beside its shards; the manifest is the last. With it,
        nothing that is hidden for it is needed any more. ObjectsAway, FilesGone.
        """
        if self.objects.size(f"{self.folder}/{MANIFEST}") is None:
            self._finish()
        self.objects.delete_below(f"{self.folder}/{name}" for name in (HIDDEN_SHEET, HIDDEN_ROUNDS))

    def _finish(self) -> None:
        paths = [record_path(number) for number in range(len(self.plan.shards))]
        shards = [json.loads(content) for content in self._get(paths)]
        facts = []
        for name, content in files_beside(self.plan, self._rows(), shards).items():
            self._put(name, content)
            facts.append(_facts(name, len(content), hashlib.sha256(content).hexdigest()))
        self._put(MANIFEST, manifest(self.plan, shards, facts).encode())

    def _show(self, at: int, pair: PulledPair) -> None:
        """Keep the pictures of a pair that the contact sheet shows."""
        for job in self.plan.firsts:
            if at in range(job.first, min(job.end, job.first + SHOWN)):
                self.objects.put(
                    {
                        f"{self.folder}/{HIDDEN_SHEET}/{at}/{name}": pair.files[name]
                        for name in (IMAGE_NAME, MASK_NAME)
                    }
                )

    def _rows(self) -> list[SheetRow]:
        rows = []
        for job in self.plan.firsts:
            shown = range(job.first, min(job.end, job.first + SHOWN))
            places = [f"{HIDDEN_SHEET}/{at}/{n}" for at in shown for n in (IMAGE_NAME, MASK_NAME)]
            images = self._get(places)
            pairs = zip(images[::2], images[1::2], strict=True)
            rows.append(SheetRow(job.label, [{IMAGE_NAME: i, MASK_NAME: m} for i, m in pairs]))
        return rows

    def _put(self, name: str, content: bytes) -> None:
        self.objects.put({f"{self.folder}/{name}": content})

    def _get(self, names: list[str]) -> list[bytes]:
        contents: list[bytes] = []
        for at in range(0, len(names), BATCH):
            wanted = names[at : at + BATCH]
            found = self.objects.get(f"{self.folder}/{name}" for name in wanted)
            for name, content in zip(wanted, found, strict=True):
                if content is None:
                    raise FilesGone(f"{name} is gone from the storage of results")
                contents.append(content)
        return contents


@dataclass
class _Into:
    """Stores the files of one shard, and knows their facts and the digest of all. Large ones go to
    the storage while they are written, small ones together."""

    objects: Objects
    folder: str
    stream: bool
    facts: list[dict[str, Any]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    _small: dict[str, bytes] = field(default_factory=dict)

    @contextmanager
    def put(self, name: str) -> Iterator[BinaryIO]:
        """A file of the shard, which is stored when the context ends, or by `flush`."""
        if self.stream:
            with self.objects.writing(f"{self.folder}/{name}") as sink:
                file = _Counted(sink, self.digest)
                yield cast(BinaryIO, file)
        else:
            buffer = io.BytesIO()
            file = _Counted(buffer, self.digest)
            yield cast(BinaryIO, file)
            self._small[f"{self.folder}/{name}"] = buffer.getvalue()
            if len(self._small) == BATCH:
                self.flush()
        self.facts.append(_facts(name, file.tell(), file.own.hexdigest()))

    def flush(self) -> None:
        """Store the small files that are not stored yet."""
        if self._small:
            self.objects.put(self._small)
            self._small = {}


class _Counted(io.RawIOBase):
    """Passes on what is written; counts it, and hashes it alone and with what came before."""

    def __init__(self, sink: Sink, digest: Any) -> None:
        self._sink, self._digest, self._size = sink, digest, 0
        self.own = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        content = bytes(data)
        for digest in (self.own, self._digest):
            digest.update(content)
        self._sink.write(content)
        self._size += len(content)
        return len(content)


def _facts(name: str, size: int, digest: str) -> dict[str, Any]:
    """As of `pathar.manifest.file_facts`."""
    return {"path": name, "bytes": size, "sha256": digest}
