"""The promises of the Triton decoder: on a GPU where there is one, else in Triton's interpreter.

The interpreter takes a third of a second a step, so a few short runs serve all tests; it computes
in fp32, as it multiplies no bf16. On a GPU the tests of every decoder run for this one too. Needs
nothing but torch, pytest and this folder: `pytest --confcutdir tests/model` runs it on a machine
that has no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from model import triton_step
from model.checkpoint import Checkpoint, create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES, PriorConfig
from model.decoder import FREE, Row, Sequences
from model.engine import Engine
from model.request import ByStream, ImageRequest, Label, SamplingSettings
from model.sampling import SamplingRows, guide, noise_table, sample
from model.transformer import Prior
from model.triton_decoder import TritonDecoder, fits
from pathar.contract import STREAMS
from tests.model.decoding import draw

triton = pytest.importorskip("triton", reason="needs the package triton")
import triton.language as tl  # noqa: E402

from model.triton_kernels import choose, uniform  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SIDE, K = (8, 64) if ON_GPU else (3, 32)
N = SIDE * SIDE
LABELS = [Label(name, "modality") for name in ("cytology", "fluorescence", "histology")]
SETTINGS = (
    SamplingSettings(cfg_scale=2.0),
    SamplingSettings(top_k=20, top_p=0.9, temperature=1.3),
    SamplingSettings(ByStream(1.0, 2.0), ByStream(0.0, 0.7), ByStream(0, 9)),
)


@dataclass(frozen=True)
class Drawn:
    """A row's ids and their log likelihood, and its logits by step: [N + 1, 2 streams, with and
    without the label, K].
    """

    structure: np.ndarray
    appearance: np.ndarray
    log_likelihood: tuple[float, float]
    logits: np.ndarray


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tokenizer, prior = NAMED_SIZES["test"]
    tokenizer = replace(tokenizer, image_size=8 * SIDE, codebook_size=K)
    path = tmp_path_factory.mktemp("tiny")
    return load_checkpoint(
        create_random_checkpoint(path, "tiny", (tokenizer, prior), labels=LABELS)
    )


@pytest.fixture(scope="module", autouse=True)
def suited_to_the_interpreter() -> Iterator[None]:
    """Chunks of which short rows have several, and products that round a row alike anywhere.

    NumPy's product of a tile rounds a row by its place in the tile, which no tensor core does.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

            def create_dot(_: object, a: Any, b: Any, d: Any, *precision: object) -> Any:
                by_row = np.matmul(a.data[:, None], b.data)[:, 0]
                return TensorHandle(by_row + d.data, d.dtype.scalar)

            patch.setattr(InterpreterBuilder, "create_dot", create_dot)
            patch.setattr(triton_step, "CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    free = np.full((N, 2), FREE)
    # Label 0 is the spare sequences', which must not be able to hide in a row's cache.
    return [Row(1 + n % 2, settings, 70 + n, free) for n, settings in enumerate(SETTINGS)]


@pytest.fixture(scope="module")
def together(checkpoint: Checkpoint, rows: list[Row]) -> list[Drawn]:
    """All rows from the first step on."""
    return drawn(checkpoint, rows, [0] * len(rows))


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoint, rows: list[Row]) -> Drawn:
    """The first row."""
    return drawn(checkpoint, rows[:1], [0])[0]


def drawn(checkpoint: Checkpoint, rows: list[Row], starts: list[int]) -> list[Drawn]:
    """Draw rows that join at the steps `starts`, the last in the first slot."""
    decoder = TritonDecoder(checkpoint.prior, len(rows), DEVICE)
    found: list[list[np.ndarray]] = [[] for _ in rows]
    for now in range(max(starts) + N + 1):
        for n, start in enumerate(starts):
            if start == now:
                decoder.place(len(rows) - 1 - n, rows[n])
        live = [n for n in reversed(range(len(rows))) if starts[n] <= now <= starts[n] + N]
        slots = [len(rows) - 1 - n for n in live]
        decoder.arrange(slots)
        decoder.step()
        logits = np.stack(decoder.logits())
        sequences = Sequences.of(slots, [rows[n].settings for n in live])
        for n, label, null in zip(live, sequences.label_row, sequences.null_row, strict=True):
            found[n].append(logits[:, [label, null]])
    slots = [len(rows) - 1 - n for n in range(len(rows))]
    made = [(*decoder.tokens(slot), decoder.log_likelihood(slot)) for slot in slots]
    return [Drawn(*of_row, np.stack(of_step)) for of_row, of_step in zip(made, found, strict=True)]


def same(one: Drawn, other: Drawn) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("structure", "appearance", "log_likelihood", "logits")
    )


@pytest.mark.slow
def test_a_row_has_the_same_bits_alone_and_among_others(
    alone: Drawn, together: list[Drawn]
) -> None:
    assert same(alone, together[0])


@pytest.mark.slow
def test_rows_that_join_later_change_no_bit_of_any(
    checkpoint: Checkpoint, rows: list[Row], together: list[Drawn]
) -> None:
    staggered = drawn(checkpoint, rows, [4, 0, 2])
    for n, (one, other) in enumerate(zip(together, staggered, strict=True)):
        assert same(one, other), f"row {n}"


@pytest.mark.slow
@pytest.mark.skipif(not ON_GPU, reason="no GPU; the interpreter would take minutes")
@pytest.mark.parametrize("others", [1, 3, 10, 31, 32, 70, 130])
def test_a_row_has_the_same_bits_in_every_captured_size(
    checkpoint: Checkpoint, rows: list[Row], alone: Drawn, others: int
) -> None:
    more = [replace(rows[0], seed=500 + n, label=1 + n % 2) for n in range(others)]
    among = drawn(checkpoint, [rows[0], *more], [others % 3, *range(others)])
    assert same(among[0], alone)


@pytest.mark.slow
@torch.no_grad()
def test_logits_agree_with_the_teacher_forced_pass(
    checkpoint: Checkpoint, together: list[Drawn], rows: list[Row]
) -> None:
    prior = checkpoint.prior.cpu()
    for row, of_row in zip(rows, together, strict=True):
        ids = (torch.from_numpy(x)[None] for x in (of_row.structure, of_row.appearance))
        null_label = prior.null_label if row.settings.guided else row.label
        labels = torch.tensor([row.label, null_label])
        full = prior(labels, *(x.expand(2, -1) for x in ids))
        for stream, theirs in enumerate(full):
            ours = of_row.logits[stream : N + stream, stream].swapaxes(0, 1)
            error = np.linalg.norm(ours - theirs.numpy()) / np.linalg.norm(theirs.numpy())
            assert error < (2e-2 if ON_GPU else 2e-5)


@pytest.mark.slow
def test_tokens_are_what_the_reference_sampler_draws_from_the_same_logits(
    together: list[Drawn], rows: list[Row]
) -> None:
    for row, of_row in zip(rows, together, strict=True):
        noise = noise_table(row.seed, N)
        for stream, ids in enumerate((of_row.structure, of_row.appearance)):
            kind = SamplingRows.of([row.settings], STREAMS[stream], torch.device("cpu"))
            scale = torch.tensor([row.settings.of_stream(STREAMS[stream])["cfg_scale"]])
            for location in range(N):
                logits = torch.from_numpy(of_row.logits[location + stream, stream])
                null = logits[:1] if scale == 1 else logits[1:]
                guided = guide(logits[:1], null, scale)
                chosen = sample(guided, kind, noise[location, stream : stream + 1])
                assert int(chosen[0]) == ids[location], f"stream {stream}, location {location}"


@pytest.mark.slow
def test_log_likelihoods_are_those_of_the_tokens_by_the_same_logits(together: list[Drawn]) -> None:
    for of_row in together:
        for stream, ids in enumerate((of_row.structure, of_row.appearance)):
            of_label = torch.from_numpy(of_row.logits[stream : N + stream, stream, 0]).double()
            wanted = of_label.log_softmax(-1)[torch.arange(N), torch.from_numpy(ids)].sum()
            assert of_row.log_likelihood[stream] == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.slow
def test_no_appearance_token_moves_a_structure_logit_and_given_tokens_stand(
    checkpoint: Checkpoint, rows: list[Row], alone: Drawn
) -> None:
    given = np.full((N, 2), FREE)
    given[:, 1] = (alone.appearance + 1) % K
    spoilt = drawn(checkpoint, [replace(rows[0], given=given)], [0])[0]
    assert np.array_equal(spoilt.appearance, given[:, 1])
    assert np.array_equal(spoilt.structure, alone.structure)
    assert np.array_equal(spoilt.logits[:, 0], alone.logits[:, 0])
    moved = (spoilt.logits[:, 1] != alone.logits[:, 1]).any((1, 2))
    assert moved[2:].all(), "appearance must see the appearance before it"


@pytest.mark.slow
def test_the_engine_draws_the_same_and_frees_a_slot_half_way(
    checkpoint: Checkpoint, rows: list[Row], alone: Drawn
) -> None:
    requests = [ImageRequest(LABELS[row.label].name, row.seed, row.settings) for row in rows]
    engine = Engine(checkpoint, device=DEVICE.type, slots=2, threads=1, kernel="triton")
    dropped = engine.admit(requests[2])
    engine.step()
    engine.retire(dropped)
    grids = draw(engine, requests[:1])[0]
    assert np.array_equal(grids.structure.flatten(), alone.structure)
    assert np.array_equal(grids.appearance.flatten(), alone.appearance)
    assert engine.render(grids).image.shape == (8 * SIDE, 8 * SIDE, 3)


@triton.jit
def noise_kernel(
    seed: tl.tensor, out: tl.tensor, LOCATIONS: tl.constexpr, STREAM: tl.constexpr
) -> None:
    location = tl.arange(0, LOCATIONS)
    tl.store(out + location, uniform(tl.load(seed), location, location * 0 + STREAM))


@pytest.mark.parametrize("seed", [0, 7, 4696, 2**32, 2**53 - 1])
def test_noise_is_the_table_bit_for_bit(seed: int) -> None:
    table, out = noise_table(seed, 256), torch.zeros(256, device=DEVICE)
    for stream in (0, 1):
        key = torch.tensor([seed], device=DEVICE)
        noise_kernel[(1,)](key, out, LOCATIONS=256, STREAM=stream)
        assert torch.equal(out.cpu(), table[:, stream])


@triton.jit
def choose_kernel(
    logits: tl.tensor,
    noise: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    out: tl.tensor,
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    of_row = tl.load(logits + row * SIZE + tl.arange(0, SIZE))
    kind = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row)
    token = choose(of_row, tl.load(noise + row), kind[0], kind[1], kind[2], SIZE, BITS)
    tl.store(out + row, token)


def test_the_sampler_is_the_reference_in_every_kind_of_row() -> None:
    """Ties, signed zeros, infinities and far values too; whatever temperature, top-k and top-p."""
    kinds = [
        SamplingSettings(1.0, temperature, top_k, top_p)
        for temperature in (0.0, 0.7, 2.0)
        for top_k, top_p in ((0, 1.0), (1, 1.0), (5, 0.8), (16, 0.3), (0, 0.95), (0, 1e-50))
    ]
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(len(kinds), 16, generator=generator)
    logits[::3] = logits[::3].round()
    logits[1::4, :3] = torch.tensor([-torch.inf, 1e30, -0.0])
    logits[2::4, :6] = torch.tensor([0.0, -0.0, 0.0, -0.0, -1e30, -torch.inf])
    noise = torch.rand(len(kinds), generator=generator)
    rows = SamplingRows.of(kinds, "structure", DEVICE)
    out = torch.zeros(len(kinds), dtype=torch.int32, device=DEVICE)
    arguments = (rows.temperature, rows.top_k, rows.top_p, out)
    choose_kernel[(len(kinds),)](
        logits.to(DEVICE), noise.to(DEVICE), *arguments, SIZE=16, BITS=4, num_warps=1
    )
    expected = sample(logits, SamplingRows.of(kinds, "structure", torch.device("cpu")), noise)
    assert out.tolist() == expected.tolist()


def test_a_step_is_fewer_than_fifty_launches_at_eight_layers() -> None:
    tokenizer, config = NAMED_SIZES["paper"]
    sizes = {"codebook_size": tokenizer.codebook_size, "grid_size": tokenizer.grid_size}
    prior, nowhere = Prior(config, **sizes, labels=3), torch.device("meta")
    assert len(triton_step.Step(prior, 1, 2, nowhere, overlap=False).launches) == 43


def test_other_shapes_and_other_devices_are_left_to_another_decoder() -> None:
    cpu = torch.device("cpu")
    assert not fits(Prior(NAMED_SIZES["test"][1], codebook_size=64, grid_size=2, labels=1), cpu)
    for config, size in (
        (PriorConfig(layers=1, heads=2, width=48), 64),  # no whole column tiles
        (PriorConfig(layers=1, heads=1, width=96), 64),  # a head width of 96
        (PriorConfig(layers=1, heads=1, width=32), 48),  # 48 codes
    ):
        prior = Prior(config, codebook_size=size, grid_size=2, labels=1)
        assert not triton_step.takes(prior)
        with pytest.raises(RuntimeError, match="sizes"):
            TritonDecoder(prior, 1, DEVICE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every kernel of paper-size steps of many sizes, for a GPU of capability 9.0."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.model.compile_kernels", "90"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.processes
def test_no_number_of_slots_or_sequences_compiles_another_kernel(
    compiled: list[dict[str, Any]],
) -> None:
    """Another kernel could round in another way."""
    counts = Counter(kernel["kernel"] for kernel in compiled)
    linears = {"qkv_linear": 1, "normed_linear": 2, "residual_linear": 2}
    assert counts == {"embed": 1, **linears, "attend": 1, "draw": 1}


@pytest.mark.processes
def test_paper_size_kernels_spill_nothing_and_multiply_by_warpgroups(
    compiled: list[dict[str, Any]],
) -> None:
    for kernel in compiled:
        assert kernel["spilled_bytes"] == 0, kernel
        assert kernel["shared_bytes"] <= 227 * 1024, kernel
        assert bool(kernel["warpgroup_products"]) == kernel["kernel"].endswith("linear"), kernel
