"""The formats of a data set: how the pairs of one shard become files.

A writer gets pairs in order and a way to put files; the same pairs give the same bytes. Knows
nothing of where pairs come from, and of no service.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import PurePath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from pathar.contract import IMAGE_NAME, MASK_NAME, STREAMS, Setting
from pathar.errors import UsageError
from pathar.quality import Quality
from pathar.recipe import Format, ModelRef

MODE = 0o644
GROUP_ROWS = 100
"""Rows of a group in Parquet: what a reader decodes at once."""
LABELS = {"background": 0, "nucleus": 1}
"""Values in the label pictures of nnU-Net."""
NNUNET = {IMAGE_NAME: ("imagesTr", "_0000"), MASK_NAME: ("labelsTr", "")}
"""Its folders for what it knows of a pair, and what follows a pair's name there."""
CHANNELS = {"0": "R", "1": "G", "2": "B"}


@dataclass(frozen=True)
class PulledPair:
    """One pair of a data set. `files` by name, as the worker wrote them."""

    name: str
    label: str
    seed: int
    settings: Mapping[str, Setting]
    model: ModelRef
    files: Mapping[str, bytes]

    @cached_property
    def quality(self) -> Quality:
        """How good it is. InternalError where its record does not say it."""
        return Quality.of(self.files)

    def facts(self) -> dict[str, Any]:
        """What it was drawn from, and how good it is."""
        told: dict[str, Any] = {"label": self.label, "seed": self.seed}
        for name, value in self.settings.items():
            both = value if isinstance(value, Mapping) else dict.fromkeys(STREAMS, value)
            told |= {f"{name}_{stream}": both[stream] for stream in STREAMS}
        of_model = ("name", "version", "numerics")
        told |= {f"model_{name}": getattr(self.model, name) for name in of_model}
        quality = self.quality
        told |= {"nuclei": quality.nuclei, "agreement": quality.agreement}
        streams = quality.log_likelihood._asdict()
        return told | {f"log_likelihood_{stream}": value for stream, value in streams.items()}


Put = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens a file of the data set by its path; it has its name once it is whole and safe."""
Writer = Callable[[Iterable[PulledPair], str, Put], None]
"""Writes the pairs of a shard with this name."""


def pair_name(label: str, number: int) -> str:
    """The name of a pair, without dots: WebDataset's keys end at the first one."""
    return f"{re.sub('[^A-Za-z0-9_-]', '_', label)}-{number:06d}"


def _write_webdataset(pairs: Iterable[PulledPair], shard: str, put: Put) -> None:
    """`NAME.image.png` and so on, and `NAME.json` with what the pair was drawn from."""
    with put(f"{shard}.tar") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for pair in pairs:
            facts = json.dumps(pair.facts(), sort_keys=True).encode()
            for name, content in {**pair.files, "json": facts}.items():
                entry = tarfile.TarInfo(f"{pair.name}.{name}")
                entry.size, entry.mode = len(content), MODE
                archive.addfile(entry, io.BytesIO(content))


def _write_parquet(pairs: Iterable[PulledPair], shard: str, put: Put) -> None:
    """A row for each pair; PNGs as Hugging Face's `datasets` keeps images: bytes and a path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with put(f"{shard}.parquet") as file:
        writer, rows = None, iter(pairs)
        while group := list(islice(rows, GROUP_ROWS)):
            table = pa.Table.from_pylist([_row(pair) for pair in group], _schema(group[0]))
            writer = writer or pq.ParquetWriter(file, table.schema, compression="none")
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _row(pair: PulledPair) -> dict[str, Any]:
    row = {"name": pair.name, **pair.facts()}
    for name, content in pair.files.items():
        stem, kind = _split(name)
        named = {"bytes": content, "path": f"{pair.name}.{name}"}
        row[stem] = named if kind == "png" else content.decode()
    return row


def _schema(pair: PulledPair) -> Any:
    """The columns of a pair, and their features for `datasets`."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = {
        str: (pa.string(), "string"),
        int: (pa.int64(), "int64"),
        float: (pa.float64(), "float64"),
        type(None): (pa.float64(), "float64"),  # an agreement that is not known
    }
    columns, features = {}, {}
    for name, value in _row(pair).items():
        if isinstance(value, dict):
            columns[name], features[name] = image, {"_type": "Image"}
        else:
            columns[name], dtype = kinds[type(value)]
            features[name] = {"dtype": dtype, "_type": "Value"}
    told = json.dumps({"info": {"features": features}})
    return pa.schema(columns.items(), metadata={"huggingface": told})


def _write_folder(pairs: Iterable[PulledPair], _: str, put: Put) -> None:
    """`LABEL/images/NAME.png`, `LABEL/masks/NAME.png` and so on."""
    for pair in pairs:
        folder = re.sub("^[.]|[/\\\\]", "_", pair.label)
        for name, content in pair.files.items():
            stem, kind = _split(name)
            with put(f"{folder}/{_plural(stem)}/{pair.name}.{kind}") as file:
                file.write(content)


def _write_nnunet(pairs: Iterable[PulledPair], _: str, put: Put) -> None:
    """nnU-Net's raw layout: RGB in `imagesTr`, labels 0 and 1 in `labelsTr`; what it does not know
    lies in folders beside them.
    """
    for pair in pairs:
        for name, content in pair.files.items():
            stem, kind = _split(name)
            folder, suffix = NNUNET.get(name, (f"{_plural(stem)}Tr", ""))
            with put(f"{folder}/{pair.name}{suffix}.{kind}") as file:
                file.write(_labels(content) if name == MASK_NAME else content)


def _labels(mask: bytes) -> bytes:
    """A mask of 0 and 255 as a picture of the labels 0 and 1, with the same texts."""
    with Image.open(io.BytesIO(mask)) as image:
        ids = Image.fromarray((np.asarray(image) > 0).astype(np.uint8))
        texts = PngImagePlugin.PngInfo()
        for key, value in image.info.items():
            if isinstance(key, str) and isinstance(value, str):
                texts.add_itxt(key, value)
    buffer = io.BytesIO()
    ids.save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def _split(name: str) -> tuple[str, str]:
    """`image.png` is ("image", "png")."""
    path = PurePath(name)
    return path.stem, path.suffix.removeprefix(".")


def _plural(stem: str) -> str:
    return stem if stem.endswith("s") else f"{stem}s"


WRITERS: Mapping[Format, Writer] = {
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
    "folder": _write_folder,
    "nnunet": _write_nnunet,
}


STREAMED: frozenset[Format] = frozenset(("webdataset", "parquet"))
"""Formats with one large file for each shard; the others have some small ones for each pair."""


def further_files(form: Format, pairs: int) -> Iterator[tuple[str, bytes]]:
    """What a format has once for the whole data set: paths and contents."""
    if form == "nnunet":
        described = {"channel_names": CHANNELS, "labels": LABELS, "numTraining": pairs}
        yield "dataset.json", json.dumps({**described, "file_ending": ".png"}, indent=1).encode()


def refuse_missing(form: Format) -> None:
    """UsageError where a package is missing that the format needs."""
    if form == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            needed = "pyarrow: pip install 'pathar[parquet]'"
            raise UsageError(f"format parquet needs {needed}") from None
