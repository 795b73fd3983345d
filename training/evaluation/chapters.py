"""The chapters of a report: what each takes of a study, and the sentence above its figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from model.engine import Engine
from model.request import Label
from training import segmenter as segmenters
from training.evaluation import (
    audit,
    distances,
    embedding,
    nnunet,
    nuclei,
    reconstruction,
    segmentation,
    style,
    swaps,
    telling,
)
from training.evaluation.features import Features
from training.evaluation.metric import Metric, Missing
from training.evaluation.pair_tensors import draw_pairs, real_pairs
from training.evaluation.report import Chapter, Section
from training.evaluation.study import Study, with_real
from training.evaluation.tokenizer_chapters import take_instances, take_sharpness
from training.sheets import reconstruction_sheet, sample_sheet

LATENCY_IMAGES = 8

NO_LPIPS = Missing("LPIPS", "--perceptual FILE, torchvision's AlexNet features as safetensors")
NO_SEGMENTER = Missing(
    "agreement and swapped streams",
    f"{segmenters.FILE} in the checkpoint, from python -m training.segmenter",
)


def take_reconstruction(study: Study) -> Section:
    """What the tokens keep of validation patches."""
    dataset, tokenizer = study.dataset, study.tokenizer
    size = tokenizer.config.codebook_size
    validation = real_pairs(dataset, dataset.validation, tokenizer)
    rows = reconstruction.rows_by_label(dataset, dataset.validation)
    found = reconstruction.reconstruct(tokenizer, validation, study.perceptual)
    metrics = reconstruction.reconstruction_metrics(found, rows)
    for name, chosen in rows.items():
        if chosen.any():
            of_rows = validation[chosen.nonzero()[:, 0]]
            metrics += reconstruction.codebook_metrics(of_rows, size, name)
    training = real_pairs(dataset, dataset.training, tokenizer)
    metrics += reconstruction.codebook_metrics(training, size, "all", "_training")
    pictures = {"reconstructions.jpg": reconstruction_sheet(tokenizer, dataset).reduce(2)}
    if study.perceptual is None:
        return Section(metrics, real_pictures=pictures, missing=[NO_LPIPS])
    originals = [dataset.samples[int(index)].group for index in dataset.validation]
    pictures["hardest.jpg"] = reconstruction.hardest_sheet(tokenizer, validation, found).reduce(2)
    findings, names = reconstruction.hardest(found, originals)
    return Section(
        metrics, real_pictures=pictures, findings=[findings], real_findings=[names] if names else []
    )


def take_samples(study: Study) -> Section:
    """A sheet of samples of every label."""
    config = study.checkpoint.config
    sheet = sample_sheet(config, study.tokenizer, study.checkpoint.prior)
    return Section(pictures={"samples.jpg": sheet.reduce(2)})


def take_distances(study: Study) -> Section:
    """FID, KID, precision, recall, density, coverage; LPIPS diversity; Style Score."""
    metrics: list[Metric] = []
    lpips = [] if study.perceptual else [NO_LPIPS]
    if study.options.samples < distances.FEWEST:
        needs = f"--samples {distances.FEWEST} or more"
        return Section(missing=[*lpips, Missing("distances", needs)])
    enough, missing = with_real(study, study.labels, distances.FEWEST, "distances")
    for features in study.features:
        metrics += _distances(study, features, enough)
    if study.perceptual:
        for label in enough:
            pair = study.samples(label), study.validation(label)
            metrics.append(distances.diversity(*pair, study.perceptual, label.name))
    return Section(metrics, missing=[*lpips, *missing])


def _distances(study: Study, features: Features, labels: list[Label]) -> list[Metric]:
    """Distribution figures of every label on one network, and Style Score of the modalities."""
    metrics: list[Metric] = []
    sets: dict[str, dict[str, Tensor]] = {"training": {}, "validation": {}, "drawn": {}}
    for label in labels:
        drawn = features.of(study.samples(label))
        real = features.of(study.validation(label))
        training = features.of(study.training(label, study.options.samples))
        metrics += distances.distribution_metrics(drawn, real, training, features.name, label.name)
        if label.kind == "modality":
            for held, of_this in zip(sets.values(), (training, real, drawn), strict=True):
                held[label.name] = of_this
        metrics.append(_told_apart(training, drawn, real, features.name, label.name))
        print(f"distances: {features.name}, {label.name} done", flush=True)
    return metrics + style.style_scores(
        sets["training"], sets["validation"], sets["drawn"], features.name
    )


def _told_apart(training: Tensor, drawn: Tensor, real: Tensor, features: str, label: str) -> Metric:
    """Whether one half of the samples, with training patches, teaches to tell the other half from
    validation patches."""
    seen, unseen = telling.halves(drawn)
    return telling.told_apart((training, seen), (real, unseen), "told_apart", features, label)


def take_nuclei(study: Study) -> Section:
    """Nuclei of masks: count, area, eccentricity, spacing."""
    metrics: list[Metric] = []
    drawn, real = {}, {}
    labels, missing = with_real(study, study.labels, 1, "nuclei")
    for label in labels:
        drawn[label.name] = nuclei.measure(study.samples(label).masks)
        real[label.name] = nuclei.measure(study.validation(label).masks)
        training = nuclei.measure(study.training(label).masks)
        metrics += nuclei.nuclei_metrics(drawn[label.name], real[label.name], training, label.name)
    pictures = {"nuclei.png": nuclei.histograms(drawn, real)} if labels else {}
    return Section(metrics, pictures, missing=missing)


def take_swaps(study: Study) -> Section:
    """Whether structure rules, and whether a pair's image and mask agree."""
    if study.segmenter is None:
        return Section(missing=[NO_SEGMENTER])
    givers, missing = with_real(study, study.modalities, 2, "swapped streams")
    donors = {label.name: study.validation(label) for label in givers}

    def decode(structure: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor]:
        return reconstruction.decode(study.tokenizer, structure, appearance)

    metrics: list[Metric] = []
    pictures = {}
    if donors:
        metrics += swaps.swap_metrics(swaps.swap_streams(decode, study.found, donors))
        poor = swaps.swap_streams(decode, swaps.through_a_poor_copy(study.found), donors)
        metrics += swaps.swap_metrics(poor, "_poor_copy")
        pictures["swaps.jpg"] = swaps.swap_sheet(decode, donors).reduce(2)
    labels, without = with_real(study, study.labels, 1, "agreement")
    for label in labels:
        pair = study.samples(label), study.validation(label)
        metrics.append(swaps.agreement_metric(study.found, *pair, label.name))
    return Section(metrics, real_pictures=pictures, missing=[*missing, *without])


def take_segmentation(study: Study, label: Label) -> Section:
    """A segmenter trained on one modality's pairs, tested on its real validation patches."""
    options = study.options
    if options.network is nnunet.NNUNET and not nnunet.installed():
        return Section(missing=[nnunet.MISSING])
    groups = {
        name: group
        for name, group in segmentation.GROUPS.items()
        if group.synthetic <= options.synthetic and (study.segmenter or not group.best)
    }
    labels, missing = with_real(study, [label], 1, "segmenter groups")
    if not labels:
        return Section(missing=missing)
    drawn = study.drawn(label, max(options.synthetic, *(g.drawn for g in groups.values())))
    agreeing = None
    if study.segmenter:
        agreeing = segmenters.agreement(study.segmenter, drawn.pixels(), drawn.masks)
        agreeing = agreeing.nan_to_num(1.0)  # neither in the image nor in the mask is a nucleus
    scores = segmentation.group_scores(
        label.name,
        study.training(label),
        drawn,
        study.validation(label),
        agreeing=agreeing,
        groups=groups,
        steps=options.segmenter_steps,
        seeds=options.seeds,
        network=options.network,
    )
    findings = [segmentation.verdict(scores)] if {"I", "V"} <= set(groups) else []
    return Section([score.metric() for score in scores], findings=findings)


def take_audit(study: Study) -> Section:
    """Whether samples are copies of training patches."""
    if not study.features:
        return Section(missing=[Missing("the memorisation audit", "--features, any one network")])
    features = study.features[0]
    seen = audit.seen_in_training(study.dataset, study.tokenizer, features)
    labels, missing = with_real(study, study.labels, 1, "the audit")
    cases = {
        label.name: audit.case(study.dataset, label, study.samples(label), seen, study.tokenizer)
        for label in labels
    }
    if not cases:
        return Section(missing=missing)
    found = audit.audit(cases, seen, features, study.perceptual)
    missing += [] if study.perceptual else [NO_LPIPS]
    return Section(
        found.metrics(),
        real_pictures={"closest.jpg": found.sheet},
        findings=[found.verdict],
        missing=missing,
    )


def take_embedding(study: Study) -> Section:
    """Where real patches and samples lie, and how far labels' tokens are apart."""
    labels, missing = with_real(study, study.modalities, 1, "embeddings")
    if not labels:
        return Section(missing=missing)
    real = {label.name: study.validation(label) for label in labels}
    metrics = embedding.centroid_distances(real, study.tokenizer)
    pictures = {}
    for features in study.features[:1]:
        drawn = {label.name: features.of(study.samples(label)) for label in labels}
        held = {name: features.of(pairs) for name, pairs in real.items()}
        pictures["tsne.png"] = embedding.tsne_picture(held, drawn, features.name)
    return Section(metrics, pictures, missing=missing)


def take_cost(study: Study) -> Section:
    """Parameters, and seconds per image at batch 1 (the paper's Table X)."""
    metrics = [
        Metric(
            f"parameters_{name}",
            float(sum(p.numel() for p in module.parameters())),
            None,
            "",
            1,
            "all",
        )
        for name, module in (("tokenizer", study.tokenizer), ("prior", study.checkpoint.prior))
    ]
    engine = Engine(study.checkpoint, device=study.device, slots=1, threads=study.options.threads)
    engine.warm_up()
    label = study.labels[0].name
    started = time.perf_counter()
    draw_pairs(engine, label, range(LATENCY_IMAGES), study.checkpoint.config.settings(label))
    seconds = (time.perf_counter() - started) / LATENCY_IMAGES
    metrics.append(Metric("seconds_an_image", seconds, None, "", LATENCY_IMAGES, "all"))
    return Section(metrics)


TAKES: dict[str, Callable[[Study], Section]] = {
    "samples": take_samples,
    "reconstruction": take_reconstruction,
    "sharpness": take_sharpness,
    "instances": take_instances,
    "swaps": take_swaps,
    "distances": take_distances,
    "nuclei": take_nuclei,
    "audit": take_audit,
    "embedding": take_embedding,
    "cost": take_cost,
}
BY_LABEL: dict[str, Callable[[Study, Label], Section]] = {"segmentation": take_segmentation}
"""What takes so long that each label is kept by itself."""


def chapters(study: Study, wanted: Sequence[str]) -> list[Chapter]:
    """Those of `CHAPTERS` that are wanted."""
    found = []
    for name, heading, about in CHAPTERS:
        if name in TAKES:
            takes = {name: partial(TAKES[name], study)}
        else:
            takes = {
                f"{name}-{label.name}": partial(BY_LABEL[name], study, label)
                for label in study.modalities
            }
        if name in wanted:
            found.append(Chapter(heading, about, takes))
    return found


CHAPTERS = (
    (
        "samples", "Samples",
        "Two rows per label, images above their masks, seeds 0 to 7, not selected.",
    ),
    (
        "reconstruction", "Reconstruction from tokens",
        "Real validation patches, encoded and decoded. Columns: real, reconstruction, real mask, "
        "mask from structure tokens alone. PSNR is in dB. Dice compares the decoded mask "
        "with the real one. Use and perplexity of the codebooks are over the patches of a label "
        "and, as `_training`, over all training patches. The last sheet shows the patches with the "
        "highest LPIPS above their reconstructions.",
    ),
    (
        "sharpness", "Sharpness of what is decoded",
        "Validation patches, decoded from their own tokens (`reconstruction`) and with another "
        "patch's appearance (`swap`). In brackets: the real patches; for `swap_kid` the decode "
        "without a swap; for `told_apart` chance. `fid`, `kid` and `recall` compare with "
        "training patches. `told_apart`: the share that a linear classifier recognises "
        "correctly; it was trained on training patches and their reconstructions. `lattice`: the "
        "spectrum at periods of 8 and 5.3 pixels, in multiples of its neighbours. "
        "`checkerboard`: mean |x(i, j) - x(i+1, j) - x(i, j+1) + x(i+1, j+1)|, in grey levels. "
        "`detail`: energy from 1/16 to 1/4 cycles per pixel, as a share of real.",
    ),
    (
        "instances", "Instances of nuclei",
        "Instances from structure tokens, compared with the instance maps of validation patches "
        "that have one. AJI, PQ and object F1 at an IoU over 0.5 are means over patches. In "
        "brackets: the same rule on the true mask and borders.",
    ),
    (
        "swaps", "Swaps follow structure, image and mask agree",
        "Streams swapped between validation patches: structure donors down, appearance donors "
        "across. A segmenter, trained on real patches, finds nuclei in the decode. "
        "`swap_within_dice`, `swap_across_dice`: their Dice with the structure donor's mask (in "
        "brackets: the same without a swap). `gap` is the difference; the goal is at most 0.1. "
        "`appearance_dice`: their Dice with the appearance donor's mask (in brackets: chance). "
        "`_poor_copy`: the same, found through a blur, a shift of one pixel and JPEG. "
        "`pair_agreement`: the Dice of the nuclei found in a sample with the sample's mask (in "
        "brackets: in real pairs).",
    ),
    (
        "distances", "Distance from real patches",
        "Samples compared with real validation patches, on frozen features. In brackets: "
        "training patches compared with the same. With so few real patches, FID is biased far "
        "upward in both. LPIPS diversity is the mean distance between two samples. Style Score: "
        "a classifier trained on real patches gives this share of samples the label that was "
        "requested. `told_apart`: the share of samples and validation patches that a linear "
        "classifier recognises correctly (chance: 0.5); it was trained on other samples and "
        "training patches.",
    ),
    (
        "nuclei", "Nuclei",
        "Connected components of the masks. Distances are Wasserstein distances, in standard "
        "deviations of the real values.",
    ),
    (
        "segmentation", "Value for a segmenter",
        "Dice on real validation patches of the network in the first column. It is trained on 30 "
        "real pairs (I), 100 synthetic pairs (II), or 30 real and 100, 200 or 400 synthetic "
        "pairs (III to V). All groups have the same number of updates. If a group has both "
        "kinds, half of each batch is real. Figures are means with Student's 95% interval over "
        "seeds. `V by numbers`: the same without that half. `V best`: the 400 of 600 pairs in "
        "whose image the checkpoint's segmenter best finds the mask. All real training patches "
        "show how much could be gained.",
    ),
    (
        "audit", "Memorisation",
        "`memorised`: the share of samples that are nearer to a training patch, in any of its "
        "eight views, than the 1st percentile of held-out real patches (in brackets: the share "
        "of validation patches). The limit is 3%. `nearest`: the median distance. `caught`: how "
        "many copies the audit recognises. The copies are training patches decoded from their "
        "own tokens, with another patch's tokens at a tenth of the locations.",
    ),
    (
        "embedding", "Embeddings",
        "Distances between the modalities' mean token embeddings (the paper's Table IX): structure "
        "should be closer than appearance.",
    ),
    ("cost", "Cost", "Parameters, and seconds per image at batch 1 on this machine."),
)  # fmt: skip
