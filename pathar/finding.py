"""Finds pairs in files, in folders of any layout that PathAR writes, in shards of data sets and in
archives of jobs.

Knows nothing of what is in a file.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, PngImagePlugin

from pathar.contract import FILE_NAMES, IMAGE_NAME, MASK_NAME
from pathar.errors import CommandError, UsageError
from pathar.provenance import role_of
from pathar.spool import DAMAGE

FOLDERS = {name: f"{Path(name).stem.removesuffix('s')}s" for name in FILE_NAMES}
"""Where the files of pairs lie that have folders of their own: images/1.png, masks/1.png."""
NNUNET = {name: f"{folder}Tr" for name, folder in FOLDERS.items()} | {MASK_NAME: "labelsTr"}
"""The folders of nnU-Net: imagesTr/1_0000.png, and labelsTr/1.png with 1 for 255."""
CHANNEL = "_0000"

Pair = Mapping[str, Path]
"""Where the files of a pair are, by their names in FILE_NAMES; of a lone PNG, by ""."""


@dataclass(frozen=True)
class FoundPair:
    """A pair, or a lone PNG. `where` it lies is for people, `name` its own, None for a lone PNG.
    `files` by their names in FILE_NAMES; some may be missing.
    """

    where: str
    name: str | None
    files: Mapping[str, bytes]


def find(path: Path) -> Iterator[Path | Pair]:
    """Shards and archives, and pairs or lone PNGs, in a folder or as a file. What is hidden in a
    folder does not count. UsageError where there is none.
    """
    if not path.exists():
        raise UsageError(f"{path}: does not exist")
    found = [path]
    if path.is_dir():
        ours = (each for each in sorted(path.rglob("*")) if each.suffix in (".png", *READERS))
        found = [each for each in ours if not _is_hidden(each.relative_to(path))]
    if not found:
        raise UsageError(f"{path}: holds no PNG, shard or archive")
    seen: set[Path] = set()
    for each in found:
        if each.suffix in READERS:
            yield each
        elif each not in seen:
            pair = {n: p for n, p in _places(each).items() if p == each or p.is_file()}
            seen.update(pair.values())
            yield pair


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def contents(found: Path | Pair) -> Iterator[FoundPair]:
    """The pairs of what was found. CommandError."""
    if isinstance(found, Path):
        yield from READERS[found.suffix](found)
    else:
        yield FoundPair(str(next(iter(found.values()))), _name(found), read_pair(found))


def _name(pair: Pair) -> str | None:
    role, path = next(iter(pair.items()))
    if role and path.name.endswith(role):
        return path.name.removesuffix(role).removesuffix("_") or path.parent.name
    channel = CHANNEL if path.parent.name == NNUNET[IMAGE_NAME] else ""
    return path.stem.removesuffix(channel) if role else None


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


def _in_tar(path: Path) -> Iterator[FoundPair]:
    """Of entries NAME.image.png and so on, those of a pair one after the other."""
    try:
        with tarfile.open(path, "r|") as archive:
            name, files = "", dict[str, bytes]()
            for entry in archive:
                key, _, role = entry.name.partition(".")
                if key != name and files:
                    yield FoundPair(f"{path}/{name}", name, files)
                    files = {}
                name = key
                if role in FILE_NAMES and (data := archive.extractfile(entry)):
                    files[role] = data.read()
            if files:
                yield FoundPair(f"{path}/{name}", name, files)
    except (OSError, tarfile.TarError) as error:
        raise CommandError(f"{path}: cannot be read ({error})") from error


def _in_zip(path: Path) -> Iterator[FoundPair]:
    """Of files 0000/image.png and so on, those of a pair in one folder, at any depth."""
    try:
        with zipfile.ZipFile(path) as archive:
            pairs: dict[PurePosixPath, dict[str, zipfile.ZipInfo]] = {}
            for entry in archive.infolist():
                place = PurePosixPath(entry.filename)
                if place.name in FILE_NAMES:
                    files = pairs.setdefault(place.parent, {})
                    if place.name in files:
                        raise zipfile.BadZipFile(f"{place} is in it twice")
                    files[place.name] = entry
            for folder, files in pairs.items():
                read = {name: archive.read(entry) for name, entry in files.items()}
                yield FoundPair(f"{path}/{folder}", "-".join((path.stem, *folder.parts)), read)
    except (OSError, *DAMAGE) as error:
        raise CommandError(f"{path}: cannot be read ({error})") from error


def _in_parquet(path: Path) -> Iterator[FoundPair]:
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
                    name, files = str(row.get("name")), {n: _bytes(kept[n]) for n in kept}
                    yield FoundPair(f"{path}/{name}", name, files)
    except (OSError, pa.ArrowException, KeyError, AttributeError) as error:
        raise CommandError(f"{path}: cannot be read ({error})") from error


READERS: Mapping[str, Callable[[Path], Iterator[FoundPair]]] = {
    ".tar": _in_tar,
    ".parquet": _in_parquet,
    ".zip": _in_zip,
}
"""WebDataset, Parquet as Hugging Face's `datasets` reads it, and what the service gives as
pairs.zip."""


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
