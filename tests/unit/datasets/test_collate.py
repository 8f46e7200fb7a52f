"""Collation: the golden case of the published training code."""

from __future__ import annotations

import numpy as np
from golden_cases import case, given, load_case, relative_difference

from opensora.datasets.collate import PadAndStack, stack


def item(pixels: np.ndarray) -> dict:
    return {"pixels": pixels, "input_ids": np.zeros((1, 4), np.int32), "replaced": 1}


def test_golden_batch():
    described, reference = case("collate", "training_cases.json"), load_case("collate")
    videos = [given("collate", name, about["shape"]) for name, about in described["inputs"].items()]
    batch = PadAndStack((33, 48, 64))([item(video) for video in videos])
    assert batch["pixels"].shape == tuple(reference["pad_shape"])
    assert relative_difference(batch["pixels"].sum(axis=(3, 4)), reference["channel_frame_sums"]) < 1e-4
    assert np.array_equal(batch["attention_mask"], reference["attention_mask"])
    assert list(batch["input_ids"].shape) == described["ids_shape"]
    assert batch["replaced"] == 2


def test_samples_of_one_size_are_not_padded():
    batch = PadAndStack(None)([item(np.ones((3, 29, 32, 64), np.float32))] * 2)
    assert batch["pixels"].shape == (2, 3, 29, 32, 64) and batch["attention_mask"] is None


def test_frames_are_padded_to_whole_patches():
    batch = PadAndStack(None, patch=(2, 2, 2))([item(np.ones((3, 29, 20, 32), np.float32))])
    assert batch["pixels"].shape == (1, 3, 29, 32, 32)  # 8 latent frames: 4 patches
    batch = PadAndStack(None, patch=(2, 2, 2))([item(np.ones((3, 25, 20, 32), np.float32))])
    assert batch["pixels"].shape == (1, 3, 29, 32, 32)  # 7 latent frames are padded to 8
    assert batch["attention_mask"][0].sum() == 7 * 3 * 4 and batch["attention_mask"].shape == (1, 8, 4, 4)


def test_latents_are_padded_like_the_pixels_they_were_made_from():
    shapes = [(5, 32, 64), (29, 64, 32)]
    pixels = PadAndStack((29, 64, 72), patch=(2, 2, 2))
    found = pixels([item(np.ones((3, *shape), np.float32)) for shape in shapes])
    moments = [np.ones((16, (t - 1) // 4 + 1, h // 8, w // 8), np.float32) for t, h, w in shapes]
    latents = pixels.for_latents("moments")([{"moments": one, "replaced": 0} for one in moments])
    assert latents["moments"].shape == (2, 16, 8, 8, 10)
    assert np.array_equal(latents["attention_mask"], found["attention_mask"])
    assert all((one == mask).all() for one, mask in zip(latents["moments"][:, 0], latents["attention_mask"]))
    grouped = PadAndStack(None).for_latents("moments")([{"moments": moments[0]}])
    assert grouped["moments"].shape == (1, 16, 2, 4, 8) and grouped["attention_mask"] is None


def test_stack_sums_replaced():
    batch = stack([{"a": np.full(3, k)} for k in range(2)])
    assert batch["a"].tolist() == [[0, 0, 0], [1, 1, 1]] and batch["replaced"] == 0
