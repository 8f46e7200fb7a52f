"""train_inpaint.py: training of the inpaint model from text-to-video weights."""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import make_clips
from tiny_models import make_release
from training_runs import MASK_CONFIG, rows
from training_runs import inpaint_command as command

from opensora.datasets.masks import MaskConfig
from opensora.datasets.t2v.inpaint import InpaintDataOptions, InpaintDataset
from opensora.models import OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3
from opensora.train.inpaint_options import parse_options


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpaint_training")
    make_release(folder / "release")
    make_clips(folder / "data", videos=16, images=8, frames=9, size=(32, 32))
    return folder


def test_training_starts_from_text_to_video_weights(folder, run):
    flags = f"--mask_config {MASK_CONFIG} --add_noise_to_condition --train_batch_size 4 --max_train_steps 16"
    finished = run(*command(folder, "run", *flags.split()))
    assert finished.returncode == 0, finished.stderr
    assert "text-to-video weights; the conditioning layers are new" in finished.stderr
    losses = [float(loss) for _, loss in rows(folder / "run", ("step", "loss"))]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    trained = OpenSoraInpaint_v1_3.from_pretrained(folder / "run/checkpoint-16/model").torch_state()
    start = OpenSoraT2V_v1_3.from_pretrained(folder / "release/transformer").torch_state()
    assert (trained["pos_embed_mask.1.weight"] != 0).any()  # initialized with zeros
    assert all((trained[name] != value).any() for name, value in start.items() if name.endswith("weight"))


def test_samples_mark_the_conditioning_frames(folder):
    class Words:
        knows_chinese = True

        def __call__(self, texts, length):
            self.texts = texts
            return np.zeros((1, length), np.int32), np.ones((1, length), np.int32)

    ratios = {"i2v": 1, "transition": 1}
    options = InpaintDataOptions(
        str(folder / "data/merge_data.txt"),
        num_frames=5,
        max_hxw=1024,
        cfg=1.0,
        cache_dir=str(folder / "cache"),
        mask=MaskConfig(mask_type_ratio_dict_video=ratios),
        default_text_ratio=0.5,
    )
    words = Words()
    dataset = InpaintDataset(options, words, quiet=True)
    masks, texts = set(), set()
    for seed in range(24):
        item = dataset.item(seed % len(dataset), np.random.default_rng(seed))
        masks.add((item["pixels"].shape[1], tuple(item["known_mask"])))
        texts.add(words.texts[0])
    assert {mask for frames, mask in masks if frames == 5} == {(0, 1, 1, 1, 1), (0, 1, 1, 1, 0)}
    assert {mask for frames, mask in masks if frames == 1} == {(0,), (1,)}
    sentence = "The {} showcases a scene with coherent and clear visuals."
    assert texts == {"", sentence.format("video"), sentence.format("image")}


@pytest.mark.parametrize(
    "more, words",
    [
        (["--mask_config", "none.yaml"], "none.yaml"),
        (["--mask_config", MASK_CONFIG, "--default_text_ratio", "2"], "default_text_ratio 2"),
        (["--mask_config", MASK_CONFIG, "--text_embed_cache"], "needs a text encoder"),
    ],
)
def test_contradictory_flags_are_rejected(folder, more, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        parse_options(command(folder, "none", *more)[1:])
