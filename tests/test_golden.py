"""The same seed gives the same bytes in every release, or its BUILD says that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.engine import BUILD
from model.native.build import VARIANTS
from model.native_decoder import NativeDecoder, libraries
from model.reference import recompute
from model.torch_decoder import TorchDecoder, has_bf16
from tests import golden
from tests.golden import FLAT_ROWS, LABELS, ROWS, Tokens, checkpoint, drawn

PINNED = golden.pinned()
ADVICE = (
    "build {build} gives another value for {name!r}: the same seed no longer gives the same bytes. "
    "If that is meant, raise BUILD in model/engine.py and run `python -m tests.golden`; "
    "if not, undo what changed it."
)
TRITON_STEPS = 5
"""Of each row in Triton's interpreter, which takes a third of a second for one."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def advice(name: str) -> str:
    return ADVICE.format(build=BUILD, name=name)


def test_the_values_belong_to_this_build() -> None:
    expected = f"golden.json is of build {PINNED['build']}, the engine's BUILD is {BUILD}"
    assert PINNED["build"] == BUILD, f"{expected}: run `python -m tests.golden`"


@pytest.mark.parametrize("name", golden.EVERYWHERE)
def test_what_is_the_same_everywhere_is_as_in_the_last_release(name: str) -> None:
    if name == "int8 tokens" and not libraries():
        pytest.skip("the compiled decode step is not built")
    wrong = golden.differing(name, golden.EVERYWHERE[name](), PINNED[name])
    assert not wrong, advice(name)


@pytest.mark.parametrize("name", golden.BY_KEY)
def test_what_depends_on_libraries_is_as_in_the_last_release_with_these(name: str) -> None:
    missing = []
    for key, value in golden.BY_KEY[name]().items():
        if key in PINNED[name]:
            wrong = golden.differing(name, value, PINNED[name][key])
            assert not wrong, advice(f"{name}, {key}")
        else:
            missing.append(key)
    if missing:
        pytest.skip(f"no {name} of {missing[0]} yet: `python -m tests.golden` adds them")


@pytest.mark.parametrize("name", ROWS)
def test_decoders_in_fp32_draw_what_the_last_release_drew(name: str) -> None:
    prior, row = checkpoint().prior, ROWS[name]
    label = [each.name for each in LABELS].index(row.label)
    whole = [ids[0].tolist() for ids in recompute(prior, [row], [label])]
    assert_drawn(dict(zip(("structure", "appearance"), whole, strict=True)), "fp32 tokens", name)
    assert_drawn(drawn(TorchDecoder(prior, 1, in_bf16=False), row), "fp32 tokens", name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_processor_draws_what_the_last_release_drew(variant: str, threads: int) -> None:
    if variant not in libraries():
        pytest.skip(f"the {variant} decode step is not built or not for this processor")
    decoder = NativeDecoder(checkpoint().prior, 2, threads, variant=variant)
    for name, row in ROWS.items():
        assert_drawn(drawn(decoder, row), "int8 tokens", name)


@pytest.mark.parametrize("kind", ["torch", "torch_bf16", *VARIANTS])
@pytest.mark.parametrize("name", FLAT_ROWS)
def test_where_all_tokens_are_equally_likely_every_decoder_draws_by_the_noise_alone(
    name: str, kind: str
) -> None:
    """So the noise of a place, and how many tokens top-k and top-p keep, are those of before."""
    prior = checkpoint(flat=True).prior
    if kind in VARIANTS:
        if kind not in libraries():
            pytest.skip(f"the {kind} decode step is not built or not for this processor")
        decoder: Any = NativeDecoder(prior, 1, 1, variant=kind)
    else:
        if kind == "torch_bf16" and not has_bf16():
            pytest.skip("this processor does not multiply bf16")
        decoder = TorchDecoder(prior, 1, in_bf16=kind == "torch_bf16")
    assert_drawn(drawn(decoder, FLAT_ROWS[name]), "flat tokens", name)


@pytest.mark.slow
@pytest.mark.parametrize("flat", [True, False])
def test_triton_draws_what_the_last_release_drew(flat: bool) -> None:
    pytest.importorskip("triton", reason="needs the package triton")
    from model.triton_decoder import TritonDecoder

    on_gpu = torch.cuda.is_available()
    if on_gpu and not flat:
        pytest.skip("a GPU computes in bf16; in the interpreter Triton computes in fp32")
    rows, kind = (FLAT_ROWS, "flat tokens") if flat else (ROWS, "fp32 tokens")
    device = torch.device("cuda" if on_gpu else "cpu")
    decoder = TritonDecoder(checkpoint(flat=flat).prior, 1, device)
    for name, row in rows.items():
        assert_drawn(drawn(decoder, row, steps=None if on_gpu else TRITON_STEPS), kind, name)


def test_values_are_pinned_anew_only_for_a_new_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "golden.json"
    monkeypatch.setattr(golden, "PATH", path)
    changed = json.dumps({**PINNED, "image_seed": {"7, 0": 8}})
    path.write_text(changed)
    assert golden.pin() == 1
    assert path.read_text() == changed
    assert "image_seed" in capsys.readouterr().err
    path.write_text(json.dumps({**PINNED, "image_seed": {}, "build": "older"}))
    assert golden.pin() == 0
    assert golden.pinned()["image_seed"] == PINNED["image_seed"]
    assert golden.pinned()["build"] == BUILD


def assert_drawn(tokens: Tokens, kind: str, name: str) -> None:
    """As many tokens as there are are those that are pinned."""
    for stream, ids in tokens.items():
        wanted = PINNED[kind][name][stream]
        wrong = [at for at, token in enumerate(ids) if token != wanted[at]]
        assert not wrong, (
            f"{stream} token {wrong[0]} of {name!r} and {len(wrong)} in all: {advice(kind)}"
        )
