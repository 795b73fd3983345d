"""The promises of the cached decode, for every decoder."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from model import torch_decoder
from model.checkpoint import Checkpoint
from model.decoder import FREE, Decoder, Row
from model.engine import Engine
from model.native.build import VARIANTS
from model.native_decoder import NativeDecoder, libraries
from model.request import ByStream, ImageRequest, SamplingSettings
from model.sampling import noise_table
from model.torch_decoder import TorchDecoder
from model.triton_decoder import TritonDecoder
from pathar.contract import STREAMS
from tests.model.decoding import draw, same

K, N = 64, 64
MakeDecoder = Callable[[], Decoder]
native = pytest.mark.skipif(not libraries(), reason="the compiled decode step is not built")


@pytest.fixture(params=["torch", "torch_bf16", "triton", *VARIANTS])
def kind(request: pytest.FixtureRequest) -> str:
    """A decoder, or a variant of the compiled one."""
    name: str = request.param
    if name == "triton" and not torch.cuda.is_available():
        pytest.skip("no GPU; test_triton_decoder.py runs the kernels in Triton's interpreter")
    if name == "torch_bf16" and not torch_decoder.has_bf16():
        pytest.skip("this processor does not multiply bf16")
    if name in VARIANTS and name not in libraries():
        pytest.skip(f"the {name} decode step is not built or not for this processor")
    return name


@pytest.fixture
def make_decoder(checkpoint: Checkpoint, kind: str) -> MakeDecoder:
    if kind in VARIANTS:
        return lambda: NativeDecoder(checkpoint.prior, 2, 1, variant=kind)
    if kind == "triton":
        return lambda: TritonDecoder(checkpoint.prior, 2, torch.device("cuda"))
    return lambda: TorchDecoder(checkpoint.prior, 2, in_bf16=kind == "torch_bf16")


def row(seed: int, settings: SamplingSettings, appearance: np.ndarray | None = None) -> Row:
    given = np.full((N, 2), FREE)
    if appearance is not None:
        given[:, 1] = appearance
    return Row(1, settings, seed, given)


def steps(decoder: Decoder, of_row: Row) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw one row alone; the logits of each step."""
    decoder.place(0, of_row)
    decoder.arrange([0])
    for _ in range(N + 1):
        decoder.step()
        yield decoder.logits()


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_no_appearance_token_moves_any_cached_structure_logit(
    make_decoder: MakeDecoder, cfg_scale: float
) -> None:
    settings = SamplingSettings(cfg_scale=cfg_scale)
    clean, spoilt = make_decoder(), make_decoder()
    clean_steps = list(steps(clean, row(5, settings)))
    other = (clean.tokens(0)[1] + 1) % K
    spoilt_steps = list(steps(spoilt, row(5, settings, appearance=other)))
    assert np.array_equal(spoilt.tokens(0)[1], other)
    assert np.array_equal(spoilt.tokens(0)[0], clean.tokens(0)[0])
    for p, (a, b) in enumerate(zip(clean_steps, spoilt_steps, strict=True)):
        assert np.array_equal(a[0], b[0]), f"a structure logit of step {p} moved"
    moved = [not np.array_equal(a[1], b[1]) for a, b in zip(clean_steps, spoilt_steps, strict=True)]
    assert all(moved[2:]), "appearance must see the appearance before it"


@torch.no_grad()
def test_cached_logits_agree_with_the_teacher_forced_pass(
    checkpoint: Checkpoint, make_decoder: MakeDecoder, kind: str
) -> None:
    decoder = make_decoder()
    cached = list(steps(decoder, row(9, SamplingSettings())))
    structure, appearance = (torch.from_numpy(ids)[None] for ids in decoder.tokens(0))
    full = checkpoint.prior(torch.tensor([1]), structure, appearance)
    streams = (
        np.concatenate([s for s, _ in cached[:-1]]),
        np.concatenate([a for _, a in cached[1:]]),
    )
    limit = 2e-5 if kind == "torch" else 3e-2
    for ours, theirs in zip(streams, full, strict=True):
        error = np.linalg.norm(ours - theirs[0].numpy()) / np.linalg.norm(theirs[0].numpy())
        assert error < limit


@torch.no_grad()
@pytest.mark.parametrize("given", [False, True])
def test_the_log_likelihood_is_that_of_the_teacher_forced_pass(
    checkpoint: Checkpoint, make_decoder: MakeDecoder, kind: str, given: bool
) -> None:
    """By the label alone, whatever guidance and truncation drew the tokens."""
    decoder = make_decoder()
    settings = SamplingSettings(cfg_scale=2.0, top_k=9, temperature=0.8)
    appearance = np.arange(N) % K if given else None
    list(steps(decoder, row(9, settings, appearance)))
    ids = [torch.from_numpy(of_stream) for of_stream in decoder.tokens(0)]
    assert not given or np.array_equal(ids[1].numpy(), np.arange(N) % K)
    full = checkpoint.prior(torch.tensor([1]), ids[0][None], ids[1][None])
    limit = 1e-5 if kind == "torch" else 5e-3
    for ours, logits, of_stream in zip(decoder.log_likelihood(0), full, ids, strict=True):
        log_probability = logits[0].double().log_softmax(-1)
        wanted = log_probability.gather(-1, of_stream[:, None]).sum().item()
        assert ours == pytest.approx(wanted, rel=limit)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_settings_of_appearance_move_no_structure_token(
    make_decoder: MakeDecoder, guidance: float
) -> None:
    """Nor does a second sequence that appearance alone is guided by."""
    both, apart = make_decoder(), make_decoder()
    wanted = SamplingSettings(guidance, 0.9, 20, 0.9)
    of_appearance = {name: ByStream(value, other) for (name, value), other in zip(
        vars(wanted).items(), (3.0, 0.6, 3, 0.5), strict=True
    )}  # fmt: skip
    list(steps(both, row(5, wanted)))
    list(steps(apart, row(5, SamplingSettings(**of_appearance))))
    assert np.array_equal(apart.tokens(0)[0], both.tokens(0)[0])
    assert not np.array_equal(apart.tokens(0)[1], both.tokens(0)[1])


def test_a_row_draws_the_same_beside_another_of_another_position(
    make_decoder: MakeDecoder,
) -> None:
    settings = [SamplingSettings(cfg_scale=2.0, top_k=9), SamplingSettings()]
    alone, beside = make_decoder(), make_decoder()
    drawn = list(steps(alone, row(3, settings[0])))
    beside.place(1, row(4, settings[1]))
    beside.arrange([1])
    for _ in range(5):
        beside.step()
    beside.place(0, row(3, settings[0]))
    beside.arrange([0, 1])
    for structure, appearance in drawn[: N - 4]:
        beside.step()
        together = beside.logits()
        assert np.array_equal(together[0][:2], structure)
        assert np.array_equal(together[1][:2], appearance)
    for ours, theirs in zip(beside.tokens(0), alone.tokens(0), strict=True):
        assert np.array_equal(ours[: N - 6], theirs[: N - 6])


def test_a_log_likelihood_does_not_depend_on_other_rows(make_decoder: MakeDecoder) -> None:
    alone, beside = make_decoder(), make_decoder()
    of_row = row(3, SamplingSettings(cfg_scale=2.0))
    list(steps(alone, of_row))
    beside.place(1, row(4, SamplingSettings()))
    beside.arrange([1])
    for _ in range(5):
        beside.step()
    beside.place(0, of_row)
    for live in ([0, 1],) * (N - 4) + ([0],) * 5:
        beside.arrange(live)
        beside.step()
    assert beside.log_likelihood(0) == alone.log_likelihood(0)
    assert beside.log_likelihood(1) != alone.log_likelihood(0)


def test_the_least_top_p_draws_as_the_likeliest_token_alone(make_decoder: MakeDecoder) -> None:
    """1e-50 is 0 in fp32, where no probability is below it."""
    least, likeliest = make_decoder(), make_decoder()
    for decoder, settings in (
        (least, SamplingSettings(top_p=1e-50)),
        (likeliest, SamplingSettings(top_k=1)),
    ):
        list(steps(decoder, row(5, settings)))
    for ours, theirs in zip(least.tokens(0), likeliest.tokens(0), strict=True):
        assert np.array_equal(ours, theirs)


@native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_instruction_set_gives_the_same_bits(checkpoint: Checkpoint, threads: int) -> None:
    """Those of the portable build on one thread, which other processors run too."""
    settings = SamplingSettings(cfg_scale=2.0, top_k=9)
    wanted = list(
        steps(NativeDecoder(checkpoint.prior, 1, 1, variant="portable"), row(5, settings))
    )
    for variant in libraries():
        decoder = NativeDecoder(checkpoint.prior, 1, threads, variant=variant)
        for ours, portable in zip(steps(decoder, row(5, settings)), wanted, strict=True):
            assert np.array_equal(ours, portable), variant


@native
@torch.no_grad()
def test_the_largest_sums_of_bytes_fit_every_instruction_set(checkpoint: Checkpoint) -> None:
    """AVX2 adds four products in 16 bits: here all four activations are equal, and all weights."""
    prior = copy.deepcopy(checkpoint.prior)
    for block in prior.layers():
        for norm, product in ((block.norm1, block.qkv), (block.norm2, block.up)):
            norm.weight.zero_()
            norm.bias.fill_(1.0)
            product.weight.fill_(0.25)
    drawn = {
        variant: list(
            steps(NativeDecoder(prior, 1, 1, variant=variant), row(5, SamplingSettings()))
        )
        for variant in libraries()
    }
    wanted = drawn.pop("portable")
    for variant, found in drawn.items():
        for ours, portable in zip(found, wanted, strict=True):
            assert np.array_equal(ours, portable), variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_compiled_sampler_draws_what_the_reference_draws(
    checkpoint: Checkpoint, variant: str
) -> None:
    """Given the very logits of the compiled step, torch's sampler chooses the same tokens."""
    from model.sampling import SamplingRows, guide, sample

    if variant not in libraries():
        pytest.skip(f"the {variant} decode step is not built or not for this processor")
    settings = [
        SamplingSettings(),
        SamplingSettings(cfg_scale=2.5, temperature=0.7, top_k=7),
        SamplingSettings(cfg_scale=1.5, top_p=0.6),
        SamplingSettings(temperature=0.0),
        SamplingSettings(temperature=2.0, top_k=64, top_p=0.99),
        SamplingSettings(top_k=1),
        SamplingSettings(top_p=1e-50),
        SamplingSettings(
            ByStream(1.0, 2.0), ByStream(1.0, 0.7), ByStream(0, 9), ByStream(0.9, 1.0)
        ),
    ]
    agreed = total = 0
    for seed, of_row in enumerate(settings):
        decoder = NativeDecoder(checkpoint.prior, 1, 1, variant=variant)
        noise = noise_table(seed, N)
        drawn = list(steps(decoder, row(seed, of_row)))
        for stream, (name, ids) in enumerate(zip(STREAMS, decoder.tokens(0), strict=True)):
            rows = SamplingRows.of([of_row], name, torch.device("cpu"))
            scale = torch.tensor([of_row.of_stream(name)["cfg_scale"]])
            for location in range(N):
                logits = torch.from_numpy(drawn[location + stream][stream])
                null = logits[:1] if scale == 1 else logits[-1:]
                guided = guide(logits[:1], null, scale)
                chosen = sample(guided, rows, noise[location, stream : stream + 1])
                agreed += int(chosen[0]) == ids[location]
                total += 1
    # Two roundings of one sum may fall on either side of a noise value, very rarely.
    assert agreed >= total - 2


@native
def test_the_number_of_threads_changes_no_token(
    checkpoint: Checkpoint, mixed_rows: list[ImageRequest]
) -> None:
    drawn = [
        draw(Engine(checkpoint, device="cpu", slots=8, threads=n, kernel="native"), mixed_rows)
        for n in (1, 2, 3)
    ]
    torch.set_num_threads(1)
    for other in drawn[1:]:
        assert all(same(a, b) for a, b in zip(drawn[0], other, strict=True))
