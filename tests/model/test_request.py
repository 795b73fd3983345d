import json
import math
from dataclasses import replace

import pytest

from model.given import Given, Stream, of_tokens, reference
from model.request import (
    ByStream,
    GenerationRequest,
    ImageRequest,
    Label,
    ModelInfo,
    RequestError,
    SamplingSettings,
    image_seed,
    resolve,
)

MODEL = ModelInfo(
    name="m",
    version="0" * 64,
    numerics="n",
    labels=(Label("histology", "modality"), Label("blood", "organ")),
    defaults=SamplingSettings(cfg_scale=1.5, top_k=100),
    codebook_size=1024,
    grid_size=16,
    image_size=256,
)


def test_what_a_request_leaves_open_comes_from_the_checkpoint() -> None:
    request = resolve({"label": "blood", "temperature": 0.5, "top_k": None}, MODEL, seed=7)
    assert request == GenerationRequest(
        ("blood",), 1, 7, (SamplingSettings(cfg_scale=1.5, temperature=0.5, top_k=100),)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", "brain"),
        ("label", None),
        ("model", "another"),
        ("model", 3),
        ("n", 0),
        ("n", 1001),
        ("n", True),
        ("n", 1.0),
        ("seed", -1),
        ("seed", 2**53),
        ("cfg_scale", 0.99),
        ("cfg_scale", math.nan),
        ("cfg_scale", "2"),
        ("temperature", 2.01),
        ("temperature", -0.0001),
        ("top_k", 1025),
        ("top_p", 0),
        ("top_p", math.inf),
        ("colour", "blue"),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object) -> None:
    fields = {"label": "blood", field: value}
    with pytest.raises(RequestError) as refused:
        resolve(fields, MODEL, seed=0)
    assert refused.value.field == field
    assert repr(value) in str(refused.value)


def test_a_request_may_name_its_model_which_changes_nothing_else() -> None:
    fields = {"label": "blood", "n": 2}
    for model in ("m", None):
        assert resolve({**fields, "model": model}, MODEL, seed=9) == resolve(fields, MODEL, seed=9)


def test_images_beyond_one_patch_are_not_guided_unless_they_are_asked_to_be() -> None:
    large = {"label": "blood", "width": 512}
    assert resolve({"label": "blood", "width": 256}, MODEL, seed=0).settings == (MODEL.defaults,)
    assert resolve(large, MODEL, seed=0).settings == (replace(MODEL.defaults, cfg_scale=1.0),)
    guided = resolve({**large, "cfg_scale": 1.5}, MODEL, seed=0)
    assert guided.settings == (MODEL.defaults,)


def test_a_label_has_defaults_of_its_own_where_the_checkpoint_says_so() -> None:
    own = SamplingSettings(cfg_scale=ByStream(1.0, 2.0), temperature=1.1)
    labels = tuple(replace(each, defaults=own if each.name == "blood" else None)
                   for each in MODEL.labels)  # fmt: skip
    model = ModelInfo.from_dict(json.loads(json.dumps(replace(MODEL, labels=labels).to_dict())))
    both = resolve({"labels": ["histology", "blood"], "temperature": 0.5}, model, seed=0)
    usual, blood = both.settings
    assert usual == replace(MODEL.defaults, temperature=0.5)
    assert blood == replace(own, temperature=0.5)
    alone = resolve({"label": "blood", "temperature": 0.5}, model, seed=0)
    assert [image.settings for image in both.images()] == [usual, blood]
    assert alone.images() == [both.images()[1]]
    assert GenerationRequest.from_dict(json.loads(json.dumps(both.to_dict()))) == both


def test_a_setting_may_differ_between_the_streams() -> None:
    apart = {"structure": 1.0, "appearance": 1.2}
    [settings] = resolve({"label": "blood", "temperature": apart}, MODEL, seed=0).settings
    assert settings.temperature == ByStream(1.0, 1.2)
    assert settings.of_stream("appearance")["temperature"] == 1.2
    same = {"structure": 0.7, "appearance": 0.7}
    [settings] = resolve({"label": "blood", "temperature": same}, MODEL, seed=0).settings
    assert settings.temperature == 0.7


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("temperature", {"structure": 1.0}, "temperature"),
        ("top_k", {"structure": 1, "appearance": 2, "mask": 3}, "top_k"),
        ("cfg_scale", {"structure": 1.0, "appearance": 0.5}, "cfg_scale.appearance"),
        ("top_k", {"structure": 1.5, "appearance": 2}, "top_k.structure"),
        ("top_p", {"structure": 0.0, "appearance": 1.0}, "top_p.structure"),
    ],
)
def test_a_bad_value_for_a_stream_is_refused_by_name(
    field: str, value: dict[str, float], named: str
) -> None:
    with pytest.raises(RequestError) as refused:
        resolve({"label": "blood", field: value}, MODEL, seed=0)
    assert refused.value.field == named


def test_an_unknown_label_lists_the_known_ones() -> None:
    with pytest.raises(RequestError, match="histology, blood"):
        resolve({"label": "x"}, MODEL, seed=0)


def test_posting_an_images_own_seed_returns_that_image() -> None:
    request = resolve({"label": "blood", "n": 5, "seed": 11}, MODEL, seed=0)
    for image in request.images():
        alone = resolve({"label": "blood", "seed": image.seed}, MODEL, seed=0)
        assert alone.images() == [image]


def test_the_images_of_several_labels_are_those_of_each_alone() -> None:
    both = {"labels": ["blood", "histology"], "n": 3, "seed": 11}
    request = resolve(both, MODEL, seed=0, max_n=6)
    alone = [
        resolve({"label": label, "n": 3, "seed": 11}, MODEL, seed=0) for label in both["labels"]
    ]
    assert request.images() == [image for each in alone for image in each.images()]
    assert request.total == 6
    for labels, field in (
        (["blood", "blood"], "labels"),
        ([], "labels"),
        (["blood", "brain"], "labels"),
    ):
        with pytest.raises(RequestError) as refused:
            resolve({**both, "labels": labels}, MODEL, seed=0)
        assert refused.value.field == field
    with pytest.raises(RequestError, match="at most 2 of each of 2 labels"):
        resolve(both, MODEL, seed=0, max_n=5)
    best = replace(request, n=1, best_of=3)
    of_three = [draw for image in best.images() for draw in image.draws()]
    assert of_three == request.images()
    with pytest.raises(RequestError, match="none beside label"):
        resolve({**both, "label": "blood"}, MODEL, seed=0)


def test_image_seeds_are_distinct_and_fixed() -> None:
    seeds = [image_seed(42, index) for index in range(1000)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**53 for seed in seeds)
    # Written down once: a change here would change every image that was ever promised.
    assert image_seed(42, 1) == 3034452911412055


def test_json_forms_come_back_whole() -> None:
    ref = reference(Given(of_tokens([1, None, 3]), Stream("image", bytes(48))))
    image = ImageRequest("blood", 3, SamplingSettings(top_p=0.5), given=ref)
    for each in (image, replace(image, rivals=(4, 5))):
        assert ImageRequest.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    assert ModelInfo.from_dict(MODEL.to_dict()) == MODEL
    request = resolve({"label": "blood", "n": 2}, MODEL, seed=9)
    several = replace(request, labels=("blood", "histology"), best_of=3)
    for each in (request, several, replace(request, given=ref)):
        assert GenerationRequest.from_dict(json.loads(json.dumps(each.to_dict()))) == each
