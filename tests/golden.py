"""Golden values: what `BUILD` of model/engine.py makes of fixed seeds, logits, tokens and pixels.

They stand in golden.json, so that the same seed gives the same bytes in the next release, or its
build says that it does not. `python -m tests.golden` adds values that are missing. It replaces
values only after BUILD was raised.

The same on every machine, hence pinned once:
- `noise_table` and `image_seed` are integers and one exact rounding;
- `flat tokens`: with heads of zeros every token is equally likely, all weights are exactly 1, and
  the noise alone chooses. Every decoder in every precision must draw these;
- `sample` and `fp32 tokens` depend on sums, which round differently elsewhere, so they are pinned
  only where no logit that moves by up to NUDGE changes a token. Decoders in fp32 stay far below it;
- `int8 tokens` are those of the compiled decoder: integer sums, and floats that no compiler and no
  processor rounds otherwise;
- `painted` holds what fp32 gives, and is compared within three levels of 256: bf16 differs by two
  here and there;
- `nuclei` are integers;
- `encoded` tokens of a given mask are computed in 64 bits, where no rounding changes one;
- `large`: the windows of a large image are integers, and its tokens are `flat tokens`;
- `files` holds what a PNG says and tokens.json.

Not the same on every machine, hence pinned by key:
- `png` bytes, by the encoder's version.

Tokens of torch's own bf16 decoder are not pinned: its products depend on more than can be named
here (`Engine.facts`). It must draw `flat tokens` all the same.

Weights come from a formula over the names in a checkpoint and not from torch's generators, which
may change with torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Checkpoint, build
from model.config import NAMED_SIZES, ModelConfig
from model.decoder import FREE, Decoder, Row
from model.engine import BUILD, Engine, LogLikelihood, Patch, TokenGrids
from model.given import Given, Stream
from model.instances import instances, separated, shortened
from model.native_decoder import NativeDecoder
from model.reference import sequential
from model.request import ImageRequest, Label, ModelInfo, SamplingSettings
from model.sampling import SamplingRows, guide, noise_table, sample
from model.transformer import Prior
from model.windows import Overlap, plan
from pathar.contract import IMAGE_NAME, INSTANCES_NAME, MASK_NAME, TOKENS_NAME, image_seed
from worker.drawing import draw
from worker.images import image_files
from worker.png import ENCODER

if not torch.cuda.is_available():
    # Triton reads this when it is imported: its kernels run on the CPU, slowly.
    os.environ["TRITON_INTERPRET"] = "1"

PATH = Path(__file__).with_suffix(".json")
NUDGE = 1e-4
CPU = torch.device("cpu")
LABELS = (Label("histology", "modality"), Label("kidney", "organ"))
ROWS = {
    "plain": ImageRequest("histology", 7, SamplingSettings()),
    "guided": ImageRequest("kidney", 7, SamplingSettings(2.0, 0.8, 20, 0.9)),
    "greedy": ImageRequest("histology", 7, SamplingSettings(temperature=0.0)),
}
FLAT_ROWS = {
    "every token": ImageRequest("histology", 11, SamplingSettings(cfg_scale=3.0)),
    "top_k 16": ImageRequest("kidney", 12, SamplingSettings(top_k=16)),
    "top_p 0.5": ImageRequest("histology", 13, SamplingSettings(temperature=0.5, top_p=0.5)),
}
SAMPLED = [
    SamplingSettings(1.0, temperature, top_k, top_p)
    for temperature in (0.0, 0.7, 1.0, 2.0)
    for top_k, top_p in ((0, 1.0), (5, 1.0), (0, 0.6), (12, 0.9))
]

Tokens = dict[str, list[int]]


# -- the model, from a formula ---------------------------------------------------------------------


def checkpoint(*, flat: bool = False) -> Checkpoint:
    """Size `test` with fixed weights; `flat` makes every token equally likely."""
    config = ModelConfig(
        "golden", "test", *NAMED_SIZES["test"], LABELS, SamplingSettings(), "Apache-2.0"
    )
    tokenizer, prior = build(config)
    for module in (tokenizer, prior):
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(weights(name, tuple(tensor.shape)))
    if flat:
        prior.structure_head.weight.data.zero_()
        prior.appearance_head.weight.data.zero_()
    return Checkpoint(config, "0" * 64, tokenizer.eval(), prior.eval())


def weights(name: str, shape: tuple[int, ...]) -> Tensor:
    """Matrices of about the size of trained ones, in bf16 as checkpoints store them; vectors near
    0, scales and variances near 1."""
    fixed: Tensor = torch.from_numpy(spread(name, int(np.prod(shape))).reshape(shape))
    if len(shape) < 2:
        centre = 1.0 if name.endswith((".weight", "_scale", "running_var")) else 0.0
        return centre + fixed / 4
    inputs = int(np.prod(shape[1:]))
    size = 2.0 ** -round(np.log2(inputs**0.5 / 1.2)) * (2 if "_head" in name else 1)
    matrix: Tensor = (fixed * size).bfloat16().float()
    return matrix


def spread(name: str, count: int) -> np.ndarray:
    """`count` floats from -1 to 1 that look random: SplitMix64 (Steele et al. 2014), seeded by a
    name. Integers until the last step, which is exact."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


# -- values ----------------------------------------------------------------------------------------


def drawn(decoder: Decoder, row: ImageRequest, *, steps: int | None = None) -> Tokens:
    """What a decoder draws of a row in its first slot; after some steps only the first tokens."""
    prior = checkpoint().prior
    free = np.full((prior.layout.locations, 2), FREE)
    label = [each.name for each in LABELS].index(row.label)
    decoder.place(0, Row(label, row.settings, row.seed, free))
    decoder.arrange([0])
    for _ in range(steps or prior.layout.steps):
        decoder.step()
    count = steps - 1 if steps else prior.layout.locations
    structure, appearance = (ids[:count].tolist() for ids in decoder.tokens(0))
    return {"structure": structure, "appearance": appearance}


def referred(prior: Prior, row: ImageRequest) -> Tokens:
    """What the reference draws of a row."""
    label = [each.name for each in LABELS].index(row.label)
    structure, appearance = sequential(prior, [row], [label])
    return {"structure": structure[0].tolist(), "appearance": appearance[0].tolist()}


def fp32_tokens() -> dict[str, Tokens]:
    """Of ROWS; AssertionError where one of them hangs by a rounding."""
    prior = checkpoint().prior
    found = {}
    for name, row in ROWS.items():
        found[name] = referred(prior, row)
        label = [each.name for each in LABELS].index(row.label)
        ids = [torch.tensor(found[name][stream])[None] for stream in ("structure", "appearance")]
        with torch.inference_mode():
            both = prior(torch.tensor([label, prior.null_label]), *(x.expand(2, -1) for x in ids))
        noise = noise_table(row.seed, prior.layout.locations)
        rows = SamplingRows.of([row.settings] * len(noise), "structure", CPU)
        scale = torch.full((len(noise),), row.settings.cfg_scale)
        for stream, logits in enumerate(both):
            assert_steady(guide(logits[0], logits[1], scale), rows, noise[:, stream])
    return found


def sampled() -> list[int]:
    """Tokens of SAMPLED, sixteen of each, from fixed logits of 32 entries."""
    settings = [each for each in SAMPLED for _ in range(16)]
    logits = torch.from_numpy(3 * spread("logits", 32 * len(settings)).reshape(-1, 32))
    uniform = torch.from_numpy((spread("uniform", len(settings)) + 1) / 2)
    rows = SamplingRows.of(settings, "structure", CPU)
    assert_steady(logits, rows, uniform)
    return [int(token) for token in sample(logits, rows, uniform)]


def assert_steady(logits: Tensor, rows: SamplingRows, uniform: Tensor) -> None:
    """No token changes when each logit moves by NUDGE."""
    wanted = sample(logits, rows, uniform)
    for number in range(20):
        signs = np.sign(spread(f"nudge {number}", logits.numel())).reshape(logits.shape)
        nudged = sample(logits + NUDGE * torch.from_numpy(signs), rows, uniform)
        assert torch.equal(nudged, wanted), "a token hangs by a rounding; choose another seed"


def int8_tokens() -> dict[str, Tokens]:
    """Of ROWS, by the compiled decoder."""
    decoder = NativeDecoder(checkpoint().prior, 1, 1)
    return {name: drawn(decoder, row) for name, row in ROWS.items()}


def grids() -> TokenGrids:
    """Fixed tokens that are not a picture of anything."""
    ids = np.arange(64).reshape(8, 8)
    return TokenGrids((7 * ids * ids + 3 * ids) % 64, (7 * ids * ids + 5 * ids) % 64)


def painted() -> dict[str, Any]:
    """What an engine paints of `grids`: every eighth pixel [8, 8, 3], the mean of each channel, and
    the mask, eight pixels a byte."""
    engine = Engine(checkpoint(), device="cpu", slots=1, threads=1, kernel="torch")
    patch = engine.render(grids())
    return {
        "pixels": patch.image[3::8, 3::8].tolist(),
        "means": np.round(patch.image.mean((0, 1)), 2).tolist(),
        "mask": np.packbits(patch.mask == 255).tobytes().hex(),
    }


def fixed_files() -> dict[str, bytes]:
    """The files of a fixed patch."""
    y, x, channel = np.ogrid[:64, :64, :3]
    image = ((5 * x * y + 3 * x + 7 * y * channel) % 256).astype(np.uint8)
    mask = np.where((x * y // 64 % 2 == 0)[..., 0], 255, 0).astype(np.uint8)
    model = ModelInfo("golden", "0" * 64, "0" * 12, LABELS, SamplingSettings(), 64, 8, 64)
    patch = Patch(image, mask, shortened(separated(mask > 0)), 0.8125)
    tokens = replace(grids(), log_likelihood=LogLikelihood(-10.5, -20.25))
    return image_files(patch, tokens, ROWS["guided"], model, {"engine": BUILD})


def files() -> dict[str, str]:
    """What both PNGs of the fixed patch say of themselves, and tokens.json."""
    from io import BytesIO

    from PIL import Image

    made = fixed_files()
    said = {}
    for name in (IMAGE_NAME, MASK_NAME):
        with Image.open(BytesIO(made[name])) as image:
            said[name] = image.text["pathar"]  # type: ignore[attr-defined]
    return {**said, TOKENS_NAME: made[TOKENS_NAME].decode()}


def png() -> dict[str, dict[str, str]]:
    """By encoder: a hash of the bytes of each PNG of the fixed patch."""
    made = fixed_files()
    names = (IMAGE_NAME, MASK_NAME, INSTANCES_NAME)
    return {ENCODER: {name: hashlib.sha256(made[name]).hexdigest() for name in names}}


def nuclei() -> dict[str, str]:
    """A hash of the ids of a fixed mask of blobs [96, 80], without and with borders."""
    waves = sum(spread(f"wave {n}", 96 * 80).reshape(96, 80) for n in range(2))
    for axis in (0, 1, 0, 1):
        waves = sum(np.roll(waves, step, axis) for step in range(-3, 4))
    mask, between = waves > 0, np.abs(waves) < 10
    ids = {"necks": separated(mask), "borders": instances(mask, between)}
    return {
        name: hashlib.sha256(each.astype("<i4").tobytes()).hexdigest() for name, each in ids.items()
    }


def encoded() -> list[int]:
    """The structure tokens of a fixed mask of blobs [64, 64]."""
    return encoded_streams()[0]


def encoded_image() -> list[int]:
    """The appearance tokens of a fixed image of blobs [64, 64, 3]."""
    return encoded_streams()[1]


def encoded_streams() -> list[list[int]]:
    """The tokens of a fixed mask, and of an image of its waves in three colours."""
    waves = spread("mask", 64 * 64).reshape(64, 64)
    for axis in (0, 1, 0, 1):
        waves = sum(np.roll(waves, step, axis) for step in range(-3, 4))
    engine = Engine(checkpoint(), device="cpu", slots=1, threads=1, kernel="torch")
    mask = np.packbits(waves > 0).tobytes()
    colours = np.stack([waves, -waves, np.abs(waves)], 2)
    pixels = (255 * (colours - colours.min()) / np.ptp(colours)).astype(np.uint8).tobytes()
    given = Given(Stream("mask", mask), Stream("image", pixels))
    slot = engine.admit(ImageRequest("kidney", 7, SamplingSettings(), given))
    assert engine.step() == [slot]
    grids = engine.retire(slot)
    return [ids.flatten().tolist() for ids in (grids.structure, grids.appearance)]


def large() -> dict[str, str]:
    """A hash of the plan of a large image with the seeds of its windows, and one of the tokens of
    another where all are equally likely."""
    planned = [[*asdict(each).values(), each.seed(7)] for each in plan(19, 40, Overlap.of(16))]
    engine = Engine(checkpoint(flat=True), device="cpu", slots=3, threads=1, kernel="torch")
    image = replace(FLAT_ROWS["every token"], size=(104, 80))
    [(_, made)] = draw(engine, [image])
    return {
        "plan": hashlib.sha256(json.dumps(planned).encode()).hexdigest(),
        "flat tokens": hashlib.sha256(made[TOKENS_NAME]).hexdigest(),
    }


EVERYWHERE: dict[str, Callable[[], Any]] = {
    "noise_table": lambda: {
        "7, 4": noise_table(7, 4).tolist(),
        f"{2**53 - 1}, 4": noise_table(2**53 - 1, 4).tolist(),
    },
    "image_seed": lambda: {
        f"{seed}, {index}": image_seed(seed, index)
        for seed in (0, 7, 2**53 - 1)
        for index in (0, 1, 999)
    },
    "sample": sampled,
    "flat tokens": lambda: {
        name: referred(checkpoint(flat=True).prior, row) for name, row in FLAT_ROWS.items()
    },
    "fp32 tokens": fp32_tokens,
    "int8 tokens": int8_tokens,
    "painted": painted,
    "nuclei": nuclei,
    "encoded": encoded,
    "encoded image": encoded_image,
    "large": large,
    "files": files,
}
BY_KEY: dict[str, Callable[[], dict[str, dict[str, str]]]] = {
    "png": png,
}


def differing(name: str, value: Any, wanted: Any) -> list[Any]:
    """What of a value is not as wanted: keys, or places. Of `painted`, what is off by more than
    processors differ."""
    if name == "painted":
        off = [
            what
            for what, limit in (("pixels", 3), ("means", 0.2))
            if np.abs(np.array(value[what]) - np.array(wanted[what])).max() > limit
        ]
        moved = (int(value["mask"], 16) ^ int(wanted["mask"], 16)).bit_count()
        return off + ["mask"] * (moved > 12)
    if not isinstance(wanted, dict):
        value, wanted = dict(enumerate(value)), dict(enumerate(wanted))
    return sorted(key for key in {*value, *wanted} if value.get(key) != wanted.get(key))


# -- pinning ---------------------------------------------------------------------------------------


def pinned() -> dict[str, Any]:
    """What golden.json holds."""
    found: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {}
    return found


def pin() -> int:
    """Add what is missing; exit code 1, and nothing is written, where a value of this build would
    have to change."""
    old = pinned()
    new: dict[str, Any] = old if old.get("build") == BUILD else {"build": BUILD}
    torch.set_num_threads(1)
    for name, measure in EVERYWHERE.items():
        value = measure()
        if differing(name, value, new.setdefault(name, value)):
            print(f"{name}: not what build {BUILD} gives; raise BUILD first", file=sys.stderr)
            return 1
    for name, measure_by_key in BY_KEY.items():
        for key, value in measure_by_key().items():
            if new.setdefault(name, {}).setdefault(key, value) != value:
                print(f"{name}, {key}: not what build {BUILD} gives", file=sys.stderr)
                return 1
    lines = ",\n".join(f"{json.dumps(name)}: {_lines(value)}" for name, value in new.items())
    PATH.write_text(f"{{\n{lines}\n}}\n")
    return 0


def _lines(value: Any) -> str:
    """JSON with a line for each entry of an object."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "}"


if __name__ == "__main__":
    sys.exit(pin())
