"""`pathar verify`: prints a verdict on each pair and lone PNG, and sums up.

Knows neither where pairs lie nor how a verdict is reached.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from pathar.errors import UsageError
from pathar.finding import contents, find
from pathar.provenance import Verdict, verify_all
from pathar.redraw import model_at


def verify(
    paths: Sequence[Path],
    env: Mapping[str, str],
    *,
    regenerate: bool = False,
    url: str | None = None,
    as_json: bool = False,
) -> int:
    """Print a verdict on each pair or lone PNG; the exit code: 0 where all are authentic, else 1.

    `regenerate` draws each again, by the service at `url` or PATHAR_URL, else by the checkpoint
    here.
    """
    if url is not None and not regenerate:
        raise UsageError(f"url {url!r}: a service is only asked with --regenerate")
    found = [each for path in paths for each in find(path)]
    told = []
    url = url or env.get("PATHAR_URL") or None
    with model_at(url, env) if regenerate else nullcontext() as model:
        pairs = ((pair.where, pair.files) for each in found for pair in contents(each))
        for name, verdict in verify_all(pairs, model):
            told.append((name, verdict))
            if not as_json:
                print(f"{verdict.kind:15} {name}: {verdict.text}", flush=True)
    if not told:
        raise UsageError(f"{', '.join(map(str, paths))}: no pair is in it")
    counts = Counter(str(verdict.kind) for _, verdict in told)
    if as_json:
        print(json.dumps(_document(told, counts, regenerate=regenerate), indent=2))
    else:
        summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        print(f"\n{summary}{'' if regenerate else '; nothing was drawn again'}")
    return 0 if set(counts) == {"authentic"} else 1


def _document(
    told: Sequence[tuple[str, Verdict]], counts: Mapping[str, int], *, regenerate: bool
) -> dict[str, object]:
    files = [
        {
            "path": name,
            "verdict": verdict.kind,
            "text": verdict.text,
            "signed_by": dict(verdict.signed_by),
            "changes": [asdict(change) for change in verdict.changes],
        }
        for name, verdict in told
    ]
    return {"regenerated": regenerate, "counts": dict(counts), "files": files}
