"""Engines of others that draw as much as ours does: `python -m benchmarks.decode` has them.

For each image they draw two sequences (guidance) of 2 N tokens on random weights: a GPT-2 of the
prior's layers, width, heads and codebook, whose matrices are as large as ours. Each peer is a
process of its own, so that no library's threads meet those of another. What they do otherwise:

- They draw one token a step, in 2 N steps of two rows an image. Ours takes N + 1 steps of four
  rows: structure and appearance of both sequences together. That is part of what is compared.
- No peer joins two sequences by guidance: each row draws its own token, among the 100 likeliest.
  Ours joins them, and draws once for both.
- Ours has two heads, an embedding for labels, squared ReLU and RoPE in two dimensions; GPT-2 has
  one head, GELU and learnt positions.
- All begin with one token, keep keys and values, and have their own defaults for whatever is not
  named here, such as the precision of keys and values.

Peers: `openvino_int8` (OpenVINO GenAI, weights in int8) and `openvino` (in bf16, or in fp32 where
the processor does not multiply bf16), `ctranslate2_int8` (CTranslate2), `vllm` (vLLM for CPUs, in
bf16). Knows nothing of our packages: it runs in any Python that has a peer's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

TOP_K = 100
BEGIN = 0
"""The token that every sequence begins with."""
ROWS_PER_IMAGE = 2

HELD_DOWN: dict[str, dict[str, str]] = {
    "avx512_vnni": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "CT2_FORCE_CPU_ISA": "AVX512",
        "ATEN_CPU_CAPABILITY": "avx512",
    },
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
}
"""By the names of our builds: what keeps a peer from newer instructions than those. Some of them
stay: attention and norms of OpenVINO ask the processor itself, and take AVX-512 all the same."""


class PeerError(RuntimeError):
    """A peer that does not run here; the sentence says why."""


@dataclass(frozen=True)
class Shape:
    """What a peer draws with and how much: `tokens` a sequence, `rows` sequences at most, and with
    which `instructions` of HELD_DOWN at most; empty, all that the processor has."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    tokens: int
    rows: int
    threads: int
    instructions: str = ""

    @property
    def top_k(self) -> int:
        """Of how many tokens, the likeliest, one is drawn."""
        return min(TOP_K, self.vocabulary)

    @property
    def cache_gib(self) -> int:
        """Room for the keys and values of all sequences in fp32, with some blocks to spare."""
        size = self.rows * (self.tokens + 64) * self.layers * 2 * self.width * 4
        return -(-size // 2**30)


Draw = Callable[[int], Sequence[int]]
"""Draws that many sequences; their lengths in tokens."""


# -- the peers, each in its own process ------------------------------------------------------------


def random_model(shape: Shape, folder: Path) -> Path:
    """A GPT-2 with random weights, as Hugging Face stores it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.tokens + 1,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            bos_token_id=BEGIN,
            eos_token_id=BEGIN,
            pad_token_id=BEGIN,
        )
    )
    model.save_pretrained(folder)
    # Each token is a word of its own, its number. Most peers insist on a tokenizer.
    words = Tokenizer(WordLevel({str(token): token for token in range(shape.vocabulary)}, "0"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="0", eos_token="0", unk_token="0", pad_token="0"
    ).save_pretrained(folder)
    return folder


def openvino(shape: Shape, folder: Path, *, int8: bool) -> Draw:
    """OpenVINO GenAI on what optimum-intel exports, weights in int8 or in the default precision."""
    import numpy as np
    import openvino_genai
    from openvino import Tensor
    from optimum.intel import OVModelForCausalLM

    exported = folder / "openvino"
    model = random_model(shape, folder / "model")
    OVModelForCausalLM.from_pretrained(
        model, export=True, load_in_8bit=int8, compile=False
    ).save_pretrained(exported)
    # It asks the processor whether to compute in bf16, whatever it is held down to.
    precision = {"INFERENCE_PRECISION_HINT": "f32"} if shape.instructions else {}
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # nothing is drawn twice
    scheduler.cache_size = shape.cache_gib
    pipeline = openvino_genai.LLMPipeline(
        exported,
        "CPU",
        scheduler_config=scheduler,
        INFERENCE_NUM_THREADS=shape.threads,
        **precision,
    )
    config = openvino_genai.GenerationConfig(
        max_new_tokens=shape.tokens, ignore_eos=True, do_sample=True, top_k=shape.top_k
    )

    def draw(rows: int) -> list[int]:
        prompt = Tensor(np.full((rows, 1), BEGIN, np.int64))
        return [len(tokens) for tokens in pipeline.generate(prompt, config).tokens]

    return draw


def ctranslate2(shape: Shape, folder: Path) -> Draw:
    """CTranslate2 with weights and activations in int8."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    converted = folder / "ctranslate2"
    model = random_model(shape, folder / "model")
    TransformersConverter(str(model)).convert(str(converted), quantization="int8")
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type="int8", intra_threads=shape.threads
    )

    def draw(rows: int) -> list[int]:
        drawn = generator.generate_batch(
            [[str(BEGIN)]] * rows,
            min_length=shape.tokens,
            max_length=shape.tokens,
            sampling_topk=shape.top_k,
            include_prompt_in_result=False,
        )
        return [len(each.sequences_ids[0]) for each in drawn]

    return draw


def vllm(shape: Shape, folder: Path) -> Draw:
    """vLLM for CPUs, in bf16."""
    if shape.instructions:
        raise PeerError("vLLM takes what the processor has, and cannot be held down")
    os.environ |= {
        # One process, whose threads are ours to count.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(shape.cache_gib),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    model = random_model(shape, folder / "model")
    engine = LLM(
        str(model),
        dtype="bfloat16",
        max_model_len=shape.tokens + 1,
        max_num_seqs=shape.rows,
        enable_prefix_caching=False,
        seed=0,
    )
    sampling = SamplingParams(
        max_tokens=shape.tokens, ignore_eos=True, top_k=shape.top_k, detokenize=False
    )

    def draw(rows: int) -> list[int]:
        prompts = [{"prompt_token_ids": [BEGIN]}] * rows
        drawn = engine.generate(prompts, sampling, use_tqdm=False)
        return [len(each.outputs[0].token_ids) for each in drawn]

    return draw


PEERS: dict[str, tuple[tuple[str, ...], Callable[[Shape, Path], Draw]]] = {
    "openvino_int8": (
        ("openvino_genai", "optimum.intel.version"),
        lambda shape, folder: openvino(shape, folder, int8=True),
    ),
    "openvino": (
        ("openvino_genai", "optimum.intel.version"),
        lambda shape, folder: openvino(shape, folder, int8=False),
    ),
    "ctranslate2_int8": (("ctranslate2",), ctranslate2),
    "vllm": (("vllm",), vllm),
}
"""The modules that each needs, and what makes it."""


def main() -> None:
    """Serve one peer: a line with a number of images asks for them, the answer is a line too."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("shape", type=json.loads, help="the fields of Shape as JSON")
    parser.add_argument("folder", type=Path, help="for its model")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    modules, make = PEERS[args.peer]
    shape = Shape(**args.shape)
    try:
        versions = {name: str(import_module(name).__version__) for name in modules}
        draw = make(shape, args.folder)
    except (ImportError, PeerError) as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        rows = ROWS_PER_IMAGE * int(line)
        lengths = list(draw(rows))
        if lengths != [shape.tokens] * rows:
            raise RuntimeError(f"expected {rows} sequences of {shape.tokens}, drew {lengths}")
        print(json.dumps({"drawn": rows}), file=answers, flush=True)


# -- the side that measures ------------------------------------------------------------------------


class Peer:
    """A peer's process. It runs while it draws and is stopped else, so that threads that go on
    spinning take nothing from whoever is measured next. PeerError where it does not start."""

    def __init__(self, name: str, shape: Shape, python: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._said = Path(self._folder.name) / "stderr"
        # `model` asks for threads that wait without spinning. Peers wait as they like.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        environment["OMP_NUM_THREADS"] = str(shape.threads)
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [
                    *(python, "-m", "benchmarks.peers"),
                    *(name, json.dumps(asdict(shape)), self._folder.name),
                ],
                cwd=Path(__file__).parents[1],
                env=environment | HELD_DOWN.get(shape.instructions, {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                # A group of its own, to stop all that a library starts. If we die, the system ends
                # a group that is stopped.
                process_group=0,
            )
        try:
            answer = self._answer()
            if "missing" in answer:
                raise PeerError(f"{python}: {answer['missing']}")
        except PeerError:
            self.close()
            raise
        self.versions: dict[str, str] = answer["versions"]
        self._signal(signal.SIGSTOP)

    def __call__(self, batch: int) -> None:
        """Draw a batch of that many images."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        print(batch, file=self._process.stdin, flush=True)
        self._answer()
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process and all that it started."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return dict(json.loads(line))
        self._process.wait()
        said = self._said.read_text(errors="replace").strip().splitlines()
        raise PeerError(f"ended with {self._process.returncode}: {' | '.join(said[-3:])}")

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)


def start(name: str, shape: Shape, pythons: Sequence[str]) -> Peer:
    """The peer in the first of `pythons` that has its packages; PeerError without one."""
    reasons = []
    for python in pythons:
        try:
            return Peer(name, shape, python)
        except PeerError as missing:
            reasons.append(str(missing))
    raise PeerError("; ".join(reasons))


if __name__ == "__main__":
    main()
