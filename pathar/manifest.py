"""The manifest of a data set and its card, and the check of a folder against its manifest.

Knows nothing of how a data set comes about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pathar.contract import VERSION
from pathar.errors import CommandError
from pathar.quality import totals
from pathar.quality_card import quality_lines
from pathar.recipe import Format, Plan

MANIFEST = "manifest.json"
CARD = "README.md"
SHEET = "contact_sheet.jpg"
PATTERNS: Mapping[Format, str] = {"webdataset": "*.tar", "parquet": "*.parquet"}
"""The files that Hugging Face's `datasets` reads."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def manifest(
    plan: Plan, shards: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]]
) -> str:
    """The manifest as JSON. `shards` and `beside` have the facts of every file, and each shard the
    `quality` of its pairs, which is added up here."""
    quality = totals(plan.recipe.labels, shards)
    told = {
        "generator": "PathAR",
        "version": VERSION,
        "pairs": plan.recipe.pairs,
        "recipe": plan.recipe.to_dict(),
        "models": {label: asdict(ref) for label, ref in plan.models.items()},
        "quality": {label: asdict(tally) for label, tally in quality.items()},
        "shards": [{name: shard[name] for name in ("pairs", "files")} for shard in shards],
        "files": beside,
    }
    return json.dumps(told, indent=1) + "\n"


def file_facts(out: Path, name: str) -> dict[str, Any]:
    """The path, size in bytes and SHA-256 of a file."""
    with (out / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": name, "bytes": file.tell(), "sha256": digest}


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a folder. CommandError where there is none."""
    path = out / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        list(_listed(found))
    except FileNotFoundError:
        raise CommandError(f"{out}: has no {MANIFEST}, so it is not complete") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CommandError(f"{path}: is not the manifest of a data set ({error!r})") from None
    return found


def check(out: Path) -> tuple[int, list[str]]:
    """How many pairs the manifest promises, and a line for each file that is missing, altered or
    not in it. Files whose names begin with a dot do not count. CommandError without a manifest.
    """
    found = read_manifest(out)
    wrong, listed = [], {MANIFEST}
    for facts in _listed(found):
        name = facts["path"]
        listed.add(name)
        if not (out / name).is_file():
            wrong.append(f"missing: {name}")
        elif file_facts(out, name) != facts:
            wrong.append(f"altered: {name}")
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and name.as_posix() not in listed:
            wrong.append(f"extra: {name.as_posix()}")
    return found["pairs"], wrong


def _listed(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in (*found["shards"], {"files": found["files"]}):
        for facts in part["files"]:
            yield {name: facts[name] for name in ("path", "bytes", "sha256")}


def card(plan: Plan, shards: Sequence[Mapping[str, Any]]) -> str:
    """The card: Markdown, with front matter for Hugging Face. `shards` as for `manifest`."""
    recipe = plan.recipe
    size = next((name for most, name in SIZES if recipe.pairs < most), "n>1M")
    head = ["pretty_name: PathAR pairs", "task_categories: [image-segmentation]"]
    head += ["tags: [synthetic, pathology]", f"size_categories: ['{size}']"]
    if recipe.format in PATTERNS:
        head += ["configs:", "- config_name: default", f"  data_files: '{PATTERNS[recipe.format]}'"]
    rows = [
        f"| `{label}` | {count:,} | `{ref.name}` | `{ref.version[:12]}` | `{ref.numerics}` |"
        for label, count in recipe.labels.items()
        for ref in [plan.models[label]]
    ]
    return "\n".join(
        [
            *("---", *head, "---", ""),
            "# Synthetic pathology patches with nuclear masks",
            "",
            f"{recipe.pairs:,} pairs of image and mask, drawn by PathAR {VERSION}. Synthetic, not "
            "for diagnosis. The licence of the weights is in the card of each model.",
            "",
            f"![Some of each label, each image above its mask]({SHEET})",
            "",
            "| label | pairs | model | version | numerics |",
            *("|---|---|---|---|---|", *rows, ""),
            *quality_lines(plan, totals(plan.recipe.labels, shards)),
            f"`{MANIFEST}` has the recipe and the SHA-256 of each file; `pathar pull --check` "
            "compares. Each PNG says how it was drawn. The recipe:",
            "",
            *(f"    {line}" for line in json.dumps(recipe.to_dict(), indent=1).splitlines()),
            "",
        ]
    )
