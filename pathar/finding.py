"""Finds pairs in files, in folders of any layout that PathAR writes, and in shards of data sets.

Knows nothing of what is in a file.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from pathar.contract import FILE_NAMES, IMAGE_NAME, MASK_NAME
from pathar.errors import CommandError, UsageError
from pathar.provenance import role_of

SHARDS = (".tar", ".parquet")
"""WebDataset, and Parquet as Hugging Face's `datasets` reads it."""
FOLDERS = {name: f"{Path(name).stem.removesuffix('s')}s" for name in FILE_NAMES}
"""Where the files of pairs lie that have folders of their own: images/1.png, masks/1.png."""
NNUNET = {name: f"{folder}Tr" for name, folder in FOLDERS.items()} | {MASK_NAME: "labelsTr"}
"""The folders of nnU-Net: imagesTr/1_0000.png, and labelsTr/1.png with 1 for 255."""
CHANNEL = "_0000"

Pair = Mapping[str, Path]
"""Where the files of a pair are, by their names in FILE_NAMES."""


def find(path: Path) -> Iterator[Path | Pair]:
    """Shards, and pairs or lone PNGs, in a folder or as a file. UsageError where there is none."""
    if not path.exists():
        raise UsageError(f"{path}: does not exist")
    seeds = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [each for each in seeds if each == path or each.suffix in (".png", *SHARDS)]
    if not found:
        raise UsageError(f"{path}: holds no PNG and no shard")
    seen: set[Path] = set()
    for each in found:
        if each.suffix in SHARDS:
            yield each
        elif each not in seen:
            pair = {n: p for n, p in _places(each).items() if p == each or p.is_file()}
            seen.update(pair.values())
            yield pair


def contents(found: Path | Pair) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """The pairs of what was found: a name for people, and the files. CommandError."""
    if isinstance(found, Path):
        read = _in_tar if found.suffix == ".tar" else _in_parquet
        for name, files in read(found):
            yield f"{found}/{name}", files
    else:
        yield str(next(iter(found.values()))), read_pair(found)


def read_pair(pair: Pair) -> dict[str, bytes]:
    """The files of a pair; CommandError."""
    files = {}
    for name, path in pair.items():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CommandError(f"{path}: cannot be read ({error.strerror})") from error
        if path.parent.name == NNUNET[MASK_NAME]:
            content = _mask_of_labels(content)
        files[name or role_of(content)] = content
    return files


def _places(file: Path) -> dict[str, Path]:
    """Where the files of a file's pair may be; of a lone PNG its own place, without a name."""
    for name in FILE_NAMES:
        if file.name.endswith(name):
            prefix = file.name.removesuffix(name)
            return {each: file.with_name(prefix + each) for each in FILE_NAMES}
    for folders, channel in ((FOLDERS, ""), (NNUNET, CHANNEL)):
        if file.parent.name in folders.values():
            top, stem = file.parent.parent, file.stem.removesuffix(channel)
            ends = {name: Path(name).suffix for name in FILE_NAMES}
            ends[IMAGE_NAME] = channel + ends[IMAGE_NAME]
            return {name: top / folders[name] / f"{stem}{ends[name]}" for name in FILE_NAMES}
    return {"": file}


def _in_tar(path: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Of entries NAME.image.png and so on, those of a pair one after the other."""
    try:
        with tarfile.open(path, "r|") as archive:
            name, files = "", dict[str, bytes]()
            for entry in archive:
                key, _, role = entry.name.partition(".")
                if key != name and files:
                    yield name, files
                    files = {}
                name = key
                if role in FILE_NAMES and (data := archive.extractfile(entry)):
                    files[role] = data.read()
            if files:
                yield name, files
    except (OSError, tarfile.TarError) as error:
        raise CommandError(f"{path}: cannot be read ({error})") from error


def _in_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Of rows with a column for each file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UsageError(f"{path}: reading it needs pyarrow: pip install pyarrow") from None
    columns = {Path(name).stem: name for name in FILE_NAMES}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    kept = {n: row[c] for c, n in columns.items() if row.get(c) is not None}
                    yield str(row.get("name")), {n: _bytes(value) for n, value in kept.items()}
    except (OSError, pa.ArrowException, KeyError, AttributeError) as error:
        raise CommandError(f"{path}: cannot be read ({error})") from error


def _bytes(value: str | Mapping[str, bytes]) -> bytes:
    return value.encode() if isinstance(value, str) else value["bytes"]


def _mask_of_labels(png: bytes) -> bytes:
    """The mask of 0 and 255 behind a picture of the labels 0 and 1; anything else as it is."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            labels = np.asarray(image)
            texts = image.text  # type: ignore[attr-defined]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return png
    if labels.dtype != np.uint8 or labels.max(initial=0) > 1:
        return png
    notes, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, text in texts.items():
        notes.add_itxt(key, text)
    Image.fromarray(labels * np.uint8(255)).save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()
