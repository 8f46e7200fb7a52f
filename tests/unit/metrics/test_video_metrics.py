"""FVD, CLIP scores and VBench's metrics against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference
from golden_eval import EVAL_CASES, build_network, case_frames, golden_frames, with_golden_weights

from opensora.metrics import (
    aesthetic_quality,
    background_consistency,
    clip_score,
    clipsim,
    fvd,
    motion_amount,
    preprocessing,
    subject_consistency,
    temporal_flickering,
)
from opensora.metrics.clip_similarity import clip_cosines
from opensora.metrics.frechet import FeatureStatistics, frechet_distance
from opensora.metrics.vbench import aesthetic_scores, consistency, mean_over_frames
from opensora.metrics.video_distance import fvd_features, prepare
from opensora.models.vision.aesthetic import AestheticHead
from opensora.models.vision.clip import CLIPModel
from opensora.models.vision.dino import DINO
from opensora.models.vision.i3d import I3D


@pytest.mark.parametrize(
    "name, prepare_frames, tolerance",
    [
        ("openai", preprocessing.clip_openai, 0),
        ("hf", preprocessing.clip_transformers, 0),
        ("vbench_clip", preprocessing.clip_vbench, 1e-4),
        ("vbench_dino", preprocessing.dino_vbench, 1e-4),
    ],
)
def test_preprocessing_matches_reference(name, prepare_frames, tolerance):
    frames = case_frames("eval_prep_down")[0]
    prepared = prepare_frames(frames)
    assert list(prepared.shape) == case("eval_prep_down", EVAL_CASES)["full_shapes"][name]
    assert relative_difference(prepared[..., ::7, ::7], load_case("eval_prep_down")[name]) <= tolerance


@pytest.mark.parametrize("name", ["eval_fvd_prep_ceil", "eval_fvd_prep_down"])
@pytest.mark.parametrize("protocol", ["styleganv", "videogpt"])
def test_preprocessing_of_fvd_matches_reference(name, protocol):
    videos = case_frames(name) / np.float32(255)
    videos = np.float32(0.7183) * videos + np.float32(0.2813) * videos[:, :, :, ::-1]
    prepared = np.stack([prepare(video, protocol) for video in videos])[..., ::7, ::7]
    expected = load_case(name)[protocol]
    differences = np.abs(prepared - expected) / np.abs(expected).max()
    assert (differences < 1e-4).mean() >= (1 if protocol == "styleganv" else 0.999)


def features_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    inputs = case(name, EVAL_CASES)["inputs"]
    width = inputs["D"]
    mix = given(name, "mix", (width, width)).astype(np.float64) / np.sqrt(width)
    real = given(name, "a", (inputs["n1"], width)) @ mix
    generated = 0.3 + (np.float64(1.2) * given(name, "b", (inputs["n2"], width))) @ mix
    return real.astype(np.float32), generated.astype(np.float32)


@pytest.mark.parametrize("name", ["eval_frechet_full", "eval_frechet_rank", "eval_frechet_one"])
def test_frechet_distance_matches_reference(name):
    reference = load_case(name)
    sets = [FeatureStatistics.of(features) for features in features_of(name)]
    expected = reference.get("exact", reference["styleganv"])[0]
    assert abs(frechet_distance(*sets) - expected) < 1e-6 * expected
    assert abs(frechet_distance(*sets[::-1]) - expected) < 1e-6 * expected


def test_streamed_statistics_are_those_of_numpy():
    features, _ = features_of("eval_frechet_full")
    statistics = FeatureStatistics.of(features)
    assert np.allclose(statistics.mean, features.mean(0)) and np.allclose(statistics.covariance, np.cov(features.T))
    assert abs(frechet_distance(statistics, statistics)) < 1e-9
    with pytest.raises(ValueError, match="needs features of real and of generated videos"):
        frechet_distance(statistics, FeatureStatistics())


@pytest.mark.slow
@pytest.mark.parametrize("protocol, expected", [("styleganv", "styleganv_exact"), ("videogpt", "videogpt_float64")])
def test_fvd_matches_reference(protocol, expected):
    name = "eval_fvd_e2e"
    network, reference = build_network(I3D, name), load_case(name)
    shape = case(name, EVAL_CASES)["inputs"]["frames"]["shape"]
    real = golden_frames(name, shape, "real_scene", "real_motion") / np.float32(255)
    generated = golden_frames(name, shape, "gen_scene", "gen_motion") / np.float32(255) * np.float32(0.7131)
    features = np.stack([fvd_features(video, network, protocol) for video in real])
    assert relative_difference(features, reference[f"{protocol}_features_real"]) < 1e-4
    assert abs(fvd(real, generated, network, protocol) / reference[expected][0] - 1) < 1e-3
    assert abs(fvd(real, real, network, protocol)) < 1e-6


def test_fvd_refuses_what_means_nothing():
    network = build_network(I3D, "eval_i3d_odd")
    video = np.zeros((9, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="a video of 9 frames; FVD needs 10 frames"):
        fvd([video], [video], network)
    with pytest.raises(ValueError, match="protocol of FVD 'tf' is not one of styleganv, videogpt"):
        fvd([video], [video], network, "tf")


def test_clip_scores_match_reference():
    name = "eval_clip_score"
    network, reference, frames = build_network(CLIPModel, name), load_case(name), case_frames(name)
    ids = reference["input_ids"]
    for key, kind in (("openai", "openai"), ("hf", "transformers")):
        cosines = np.stack(clip_cosines(frames, ids, network, kind))
        assert relative_difference(cosines, reference[f"cosine_{key}"]) < 1e-3
        assert relative_difference(clipsim(frames, ids, network, kind), reference[f"clipsim_{key}"]) < 1e-3
    first = frames[:, :1]
    for key, definition in (("pku", "scaled"), ("frame_clamped", "frame_clamped"), ("mean_clamped", "mean_clamped")):
        assert abs(clip_score(first, ids, network, definition) - reference[f"score_{key}"][0]) < 1e-3
    hessel, clamped = (clip_score(first, ids, network, kind) for kind in ("hessel", "frame_clamped"))
    assert abs(hessel / 2.5 - clamped / 100) < 1e-9


def test_vbench_formulas_match_reference():
    name = "eval_vbench_flicker"
    shapes = case(name, EVAL_CASES)["inputs"]["frames"]["shapes"]
    videos = [
        golden_frames(name, [*shape, 3][:5] if len(shape) == 4 else shape, f"v{i}_scene", f"v{i}_motion")[0]
        for i, shape in enumerate(shapes)
    ]
    reference = load_case(name)
    assert np.abs(temporal_flickering(videos) - reference["per_video"]).max() < 1e-6
    name = "eval_vbench_consistency"
    inputs, reference = case(name, EVAL_CASES)["inputs"], load_case(name)
    lengths, width = inputs["lengths"], inputs["width"]
    values = [
        consistency(given(name, f"features{i}", (n, width)) + np.float32(0.25) * given(name, f"scene{i}", (1, width)))
        for i, n in enumerate(lengths)
    ]
    assert np.abs(values - reference["per_video"]).max() < 1e-6
    assert abs(mean_over_frames(values, lengths) - reference["score"][0]) < 1e-6
    assert abs(np.mean(values) - reference["mean_of_videos"][0]) < 1e-6


def test_aesthetic_scores_match_reference():
    name = "eval_aesthetic"
    head, reference = build_network(AestheticHead, name), load_case(name)
    scores = [aesthetic_scores(given(name, f"features{i}", (n, 768)), head) for i, n in enumerate((5, 3))]
    assert np.abs(np.concatenate(scores) - reference["per_frame"]).max() < 1e-5


def test_vbench_from_frames_matches_reference():
    name = "eval_vbench_clip_e2e"
    description, reference, frames = case(name, EVAL_CASES), load_case(name), case_frames(name)
    network = build_network(CLIPModel, name)
    head = with_golden_weights(AestheticHead(), description["head"]["case"], description["head"])
    background = background_consistency(frames, network)
    assert np.abs((1 - background) / (1 - reference["background_per_video"]) - 1).max() < 1e-3
    assert np.abs(aesthetic_quality(frames, network, head) - reference["aesthetic_per_video"]).max() < 1e-5
    name = "eval_vbench_dino_e2e"
    subject = subject_consistency(case_frames(name), build_network(DINO, name))
    assert np.abs((1 - subject) / (1 - load_case(name)["per_video"]) - 1).max() < 1e-3


def test_motion_amount_is_the_length_of_the_motion():
    texture = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    still = np.stack([texture] * 3)
    moving = np.stack([np.roll(texture, 4 * step, 1) for step in range(3)])
    amounts = motion_amount([still, moving])
    assert amounts[0] < 0.05 and 1.2 < amounts[1] < 2  # 4 of 256 pixels are 1.6 %
    for metric in (motion_amount, temporal_flickering):
        with pytest.raises(ValueError, match="a video of one frame"):
            metric([still[:1]])


@pytest.mark.slow
def test_fvd_of_shuffled_noise_is_large_and_that_of_numpy():
    name = "eval_fvd_e2e"
    network, rng = build_network(I3D, name), np.random.default_rng(3)
    real = golden_frames(name, (4, 10, 48, 48, 3), "real_scene", "real_motion")
    noise = rng.permutation(real.reshape(-1)).reshape(real.shape)
    features = [np.stack([fvd_features(video, network) for video in videos]) for videos in (real, noise)]
    found = fvd(real, noise, network)
    assert found == pytest.approx(distance_by_numpy(*features), rel=1e-4)
    assert fvd(real, real, network) < 1e-6 < 0.1 * found < found - fvd(real, real[::-1, ::-1], network)


def distance_by_numpy(real: np.ndarray, generated: np.ndarray) -> float:
    """The Fréchet distance, with the trace of the root from the eigenvalues of the product of the covariances."""
    first, second = np.cov(real.T.astype(np.float64)), np.cov(generated.T.astype(np.float64))
    eigenvalues = np.linalg.eigvals(first @ second)
    root = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    return float(((real.mean(0) - generated.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root)
