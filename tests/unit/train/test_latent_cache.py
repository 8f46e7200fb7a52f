"""opensora encode, and training from the cache that it makes."""

from __future__ import annotations

import json
import shutil

import mindspore as ms
import numpy as np
import pytest
import yaml
from latent_caches import encode_here, make_training_folder, training_flags, without_models
from made_clips import make_clips, moving_square
from processes import ROOT
from tiny_models import TEXT, VAE
from training_program import train
from training_runs import GENERATIONS, MASK_CONFIG, assert_same, rows

from opensora.checkpoint.formats.safetensors import read_safetensors
from opensora.cli import embed
from opensora.datasets.latents.cache import LatentCache
from opensora.datasets.latents.dataset import InpaintLatentDataset
from opensora.datasets.latents.shards import LATENTS, TEXTS
from opensora.datasets.media import write_video
from opensora.datasets.t2v.options import InpaintDataOptions
from opensora.models import MT5EncoderModel, WFVAEModel
from opensora.train import inpaint_options
from opensora.train.inpaint import InpaintTraining
from opensora.train.trainer import run as run_training

FIRST_FRAME = {"mask_type_ratio_dict_video": {"i2v": 1}, "mask_type_ratio_dict_image": {"clear": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_training_folder(tmp_path_factory.mktemp("latents"))
    (folder / "first_frame.yaml").write_text(yaml.safe_dump(FIRST_FRAME))
    (folder / "seldom.yaml").write_text(yaml.safe_dump({**FIRST_FRAME, "min_clear_ratio": 0.25}))
    return folder


@pytest.fixture(scope="module")
def cache(folder):
    return encode_here(folder, "cache_t2v")


def train_inpaint(folder, output, *more) -> None:
    flags = training_flags(folder, output, *more, inpaint=True)
    run_training(InpaintTraining, *inpaint_options.parse_options(flags))


def losses(folder) -> np.ndarray:
    return np.array(rows(folder, ("loss", "grad_norm")), float)


def assert_same_losses(first, second, steps: int) -> None:
    assert len(losses(first)) == steps
    np.testing.assert_allclose(losses(first), losses(second), rtol=1e-6)


@pytest.fixture(scope="module")
def from_pixels(folder):
    train(training_flags(folder, "pixels", *"--max_train_steps 12 --cfg 0.4".split()))
    return folder / "pixels"


def test_losses_equal_those_from_pixels_without_the_models(folder, cache, from_pixels):
    """Twelve steps are one and a half epochs, with captions, quality sentences and dropped captions."""
    flags = training_flags(folder, "cached", "--latent_cache", cache, *"--max_train_steps 12 --cfg 0.4".split())
    train(without_models(flags))
    assert_same_losses(folder / "cached", from_pixels, 12)


@pytest.mark.parametrize("generation", ["v1.1", "v1.2"])
def test_losses_of_older_generations_equal_those_from_pixels(generation, folder):
    words = iter(GENERATIONS[generation].format(release=folder / "release").split())
    autoencoder = [word for flag in words for word in (flag, next(words)) if flag.startswith("--ae")]
    cache = encode_here(folder, f"cache_{generation}", *autoencoder)
    steps = ("--max_train_steps", 4)
    for output, more in (("pixels", ()), ("cached", ("--latent_cache", cache))):
        train(training_flags(folder, f"{generation}-{output}", *steps, *more, generation=generation))
    assert_same_losses(folder / f"{generation}-cached", folder / f"{generation}-pixels", 4)
    with pytest.raises(ValueError, match="^--use_image_num needs the pixels of videos and images"):
        joint = "--max_image_size 32 --use_image_num 2 --use_img_from_vid".split()
        train(training_flags(folder, "none", "--latent_cache", cache, *joint, generation=generation))


def test_resumed_run_equals_an_uninterrupted_one(folder, cache, from_pixels):
    flags = ("--latent_cache", cache, "--cfg", 0.4, "--resume_from_checkpoint", "True")
    for steps in (5, 12):
        train(training_flags(folder, "resumed", *flags, "--max_train_steps", steps))
    assert_same(folder / "resumed/checkpoint-12", from_pixels / "checkpoint-12")


def test_inpaint_losses_equal_those_from_pixels(folder):
    masks = ("--mask_config", folder / "first_frame.yaml")
    cache = encode_here(folder, "cache_inpaint", "--dataset", "inpaint", *masks)
    flags = (*masks, *"--max_train_steps 8 --cfg 0.6".split())
    train_inpaint(folder, "inpaint_pixels", *flags)
    train_inpaint(folder, "inpaint_cached", *flags, "--latent_cache", cache)
    assert_same_losses(folder / "inpaint_cached", folder / "inpaint_pixels", 8)
    mask = LatentCache(cache).crop(0, 0)["known_mask"]
    assert mask.tolist() == [0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match=f"^--add_noise_to_condition true: {cache} was made with false"):
        train_inpaint(folder, "none", *flags, "--latent_cache", cache, "--add_noise_to_condition")
    with pytest.raises(ValueError, match="^--mask_config: min_clear_ratio 0.25: .* was made with 0.0"):
        seldom = ("--mask_config", folder / "seldom.yaml", "--latent_cache", cache)
        train_inpaint(folder, "none", *seldom)
    with pytest.raises(ValueError, match="^--dataset t2v: .* was made with inpaint"):
        train(training_flags(folder, "none", "--latent_cache", cache))


def test_cached_text_embeddings_are_taken_over(folder):
    data = folder / "data"
    embedded = f"--data_file_path {data}/annotation.json --output_path {data}/embeddings --model_max_length 64 \
        --text_encoder_name {folder}/release/text --device CPU"
    embed.main(embedded.split())
    (data / "embedded.txt").write_text(f"{data}/clips,{data}/embeddings,{data}/annotation.json\n")
    flags = ("--data", data / "embedded.txt", "--text_embed_cache")
    cache = encode_here(folder, "cache_embedded", *flags)
    flags = (*flags, *"--cfg 0.4 --max_train_steps 4".split())
    train(training_flags(folder, "embedded_pixels", *flags))
    train(without_models(training_flags(folder, "embedded_cached", *flags, "--latent_cache", cache)))
    assert_same_losses(folder / "embedded_cached", folder / "embedded_pixels", 4)
    with pytest.raises(ValueError, match="^--text_embed_cache false: .* was made with true"):
        train(training_flags(folder, "none", "--latent_cache", cache, "--data", data / "embedded.txt"))


def test_models_in_16_bits_are_stored_exactly(tmp_path):
    folder, flags = make_training_folder(tmp_path, videos=0), ("--precision", "fp16")
    cache = encode_here(folder, "cache_fp16", *flags)
    for kind, count in ((LATENTS, 16), (TEXTS, 18)):
        (shard,) = cache.glob(f"{kind}-*.safetensors")
        tensors = read_safetensors(shard).values()
        assert len(tensors) == count and {tensor.dtype for tensor in tensors} == {"F16"}
    train(training_flags(folder, "fp16_pixels", *flags, "--max_train_steps", 2))
    train(training_flags(folder, "fp16_cached", *flags, "--max_train_steps", 2, "--latent_cache", cache))
    np.testing.assert_allclose(losses(folder / "fp16_cached"), losses(folder / "fp16_pixels"), rtol=1e-3)


@pytest.mark.slow
def test_validation_uses_a_cache_of_its_own(folder, others, cache):
    flags = ("--max_train_steps", 2, "--validate", "--val_data", folder / "data/merge_data.txt")
    with pytest.raises(ValueError, match="needs both of --latent_cache and --val_latent_cache, or neither"):
        train(training_flags(folder, "none", *flags, "--latent_cache", cache))
    train(training_flags(folder, "validated_pixels", *flags))
    train(training_flags(folder, "validated", *flags, "--latent_cache", cache, "--val_latent_cache", cache))
    results = [
        float((folder / name / "result_val.log").read_text().rsplit(" ", 1)[1])
        for name in ("validated", "validated_pixels")
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    other = encode_here(folder, "cache_of_another_vae", "--ae_path", folder / "other_vae")
    with pytest.raises(ValueError, match=f"^--val_latent_cache {other}: made with another autoencoder than --latent"):
        train(training_flags(folder, "none", *flags, "--latent_cache", cache, "--val_latent_cache", other))


@pytest.mark.slow
def test_padded_batches_have_the_losses_of_pixels(folder):
    """Images are padded to the length of the videos, which changes nothing before the padding: WFVAE is causal."""
    size = ("--max_height", 32, "--max_width", 32)
    cache = encode_here(folder, "cache_padded", *size)
    for output, more in (("padded_pixels", ()), ("padded_cached", ("--latent_cache", cache))):
        flags = training_flags(folder, output, *size, "--max_train_steps", 4, *more)
        train([flag for flag in flags if flag != "--group_data"])
    assert_same_losses(folder / "padded_cached", folder / "padded_pixels", 4)


@pytest.fixture(scope="module")
def others(folder) -> None:
    """Other data and other models."""
    make_clips(folder / "fewer", videos=14, images=16, frames=5, size=(32, 32))
    ms.set_seed(4)
    WFVAEModel(**VAE).save_pretrained(folder / "other_vae")
    MT5EncoderModel(**TEXT, model_type="mt5").save_pretrained(folder / "other_text")


@pytest.mark.parametrize(
    "more, words",
    [
        ("--num_frames 1", "--num_frames 1: {cache} was made with 5"),
        ("--max_hxw 2048", "--max_hxw 2048: {cache} was made with 1024"),
        ("--model_max_length 32", "--model_max_length 32: {cache} was made with 64"),
        ("--train_fps 12", "--train_fps 12: {cache} was made with 24"),
        ("--ae WFVAEModel_D16_4x8x8", "--ae WFVAEModel_D16_4x8x8: {cache} was made with WFVAEModel_D8_4x8x8"),
        ("--data {folder}/fewer/merge_data.txt", "--data .*: {cache} was made from other samples"),
        ("--ae_path {folder}/other_vae", "--ae_path {folder}/other_vae, digest .*: {cache} was made with"),
        ("--text_encoder_name_1 {folder}/other_text", "--text_encoder_name_1 .*other_text, digest .*: {cache} was"),
    ],
)
def test_cache_of_other_settings_is_refused(folder, others, cache, more, words):
    with pytest.raises(ValueError, match="^" + words.format(folder=folder, cache=cache)):
        train(training_flags(folder, "none", "--latent_cache", cache, *more.format(folder=folder).split()))


def test_damaged_files_are_found_and_named(folder, cache, tmp_path):
    flags = training_flags(folder, "none", "--latent_cache", tmp_path / "damaged")
    shutil.copytree(cache, tmp_path / "damaged")
    with pytest.raises(FileNotFoundError, match="manifest.json: no such file; opensora encode"):
        train(training_flags(folder, "none", "--latent_cache", tmp_path))
    for path in sorted((tmp_path / "damaged").glob("*.safetensors")):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(ValueError, match=f"{path}: damaged, .*; delete it and run opensora encode again"):
            train(flags)
        path.unlink()
        with pytest.raises(ValueError, match=f"{path}: missing; run opensora encode again"):
            train(flags)
        path.write_bytes(content)
    manifest = json.loads((tmp_path / "damaged/manifest.json").read_text())
    (tmp_path / "damaged/manifest.json").write_text(json.dumps({**manifest, "samples": None}))
    with pytest.raises(ValueError, match="damaged: opensora encode has not finished; run it again"):
        train(flags)
    for change, words in (
        ({"format": 9}, "not a manifest of version 1"),
        ({"text_encoder": {}}, "text_encoder is damaged"),
        ({"files": {"../x": ""}}, "'../x' is not the name of a file"),
    ):
        (tmp_path / "damaged/manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=f"manifest.json: {words}"):
            train(flags)


def test_crops_depend_on_the_sample_and_the_seed_only(folder, tmp_path):
    """Videos longer than a sample; the inpaint model gets a mask with each crop."""
    data = make_clips(tmp_path / "data", videos=6, images=1, frames=20, size=(32, 32))
    entries = json.loads((data.parent / "annotation.json").read_text())
    models = ("--ae_path", folder / "release/vae", "--text_encoder_name_1", folder / "release/text")
    masks = ("--dataset", "inpaint", "--mask_config", ROOT / MASK_CONFIG, "--add_noise_to_condition")
    all_of_them = LatentCache(encode_here(tmp_path, "all", *models, *masks, "--crops", 3))
    (data.parent / "annotation.json").write_text(json.dumps(entries[5:1:-1]))
    four = LatentCache(encode_here(tmp_path, "four", *models, *masks, "--crops", 3))
    for sample in range(4):
        for crop in range(3):
            found, expected = four.crop(sample, crop), all_of_them.crop(5 - sample, crop)
            assert found.keys() == {"moments", "known_mask"} and found["moments"].shape == (32, 2, 4, 4)
            assert all((found[name] == expected[name]).all() for name in found)
    crops = [all_of_them.crop(sample, crop) for sample in range(6) for crop in range(3)]
    assert len({crop["moments"].tobytes() for crop in crops}) == 18
    assert len({crop["known_mask"].tobytes() for crop in crops}) > 2
    options = InpaintDataOptions(
        str(data), 5, max_hxw=1024, model_max_length=64, cache_dir=str(tmp_path / "cache"), total_batch_size=0
    )
    dataset = InpaintLatentDataset(options, four, quiet=True)
    drawn = {dataset.item(0, np.random.default_rng(seed))["moments"].tobytes() for seed in range(20)}
    assert drawn == {four.crop(0, crop)["moments"].tobytes() for crop in range(3)}


def test_second_run_adds_new_clips_only(folder, tmp_path, capfd):
    data = make_clips(tmp_path / "data", videos=5, images=1, frames=5, size=(32, 32))
    entries = json.loads((data.parent / "annotation.json").read_text())
    flags = ("--ae_path", folder / "release/vae", "--text_encoder_name_1", folder / "release/text")
    cache = encode_here(tmp_path, "lat", *flags)
    before = {path.name: path.read_bytes() for path in cache.glob("*-*-*")}
    capfd.readouterr()
    encode_here(tmp_path, "lat", *flags)
    assert "lat is complete, there is nothing to do" in capfd.readouterr().err
    with write_video(data.parent / "clips/new.mp4", 24) as write:
        write(moving_square(5, 32, 32, (9, 99, 199)))
    entries.insert(0, {**entries[0], "path": "new.mp4", "cap": "A new clip."})
    (data.parent / "annotation.json").write_text(json.dumps(entries))
    encode_here(tmp_path, "lat", *flags)
    after = {path.name: path.read_bytes() for path in cache.glob("*-*-*")}
    assert all(after[name] == content for name, content in before.items())
    (added,) = {name for name in after if name.startswith("latents") and name.endswith("json")} - set(before)
    assert len(json.loads(after[added])["entries"]) == 1
    opened = LatentCache(cache)
    opened.verify()
    assert opened.crop(0, 0)["moments"].shape == (16, 2, 4, 4) and len(list(cache.glob("index-*"))) == 1
    shutil.copy(data.parent / "clips/1.mp4", data.parent / "clips/new.mp4")
    with pytest.raises(ValueError, match="new.mp4: has changed since it was encoded into .*; choose another --output"):
        encode_here(tmp_path, "lat", *flags)


def test_broken_media_are_left_out(tmp_path, capfd):
    """Training replaces them by the same samples as training from pixels does."""
    clips = make_training_folder(tmp_path) / "data/clips"
    (clips / "3.mp4").write_bytes(b"not a video")
    (clips / "20.jpg").unlink()
    cache = encode_here(tmp_path, "lat")
    shown = capfd.readouterr().err
    assert "2 samples cannot be read and are left out; they are listed in" in shown and "30 samples in" in shown
    assert (tmp_path / "cache/broken_samples.tsv").read_text().count("\n") == 2
    encode_here(tmp_path, "lat")
    assert "there is nothing to do; 2 samples are left out" in capfd.readouterr().err
    train(training_flags(tmp_path, "cached", "--latent_cache", cache, "--max_train_steps", 8))
    train(training_flags(tmp_path, "pixels", "--max_train_steps", 8))
    assert_same_losses(tmp_path / "cached", tmp_path / "pixels", 8)
    shutil.rmtree(clips)
    train(training_flags(tmp_path, "without_media", "--latent_cache", cache, "--max_train_steps", 2))
    assert losses(tmp_path / "without_media")[0, 0] == losses(tmp_path / "cached")[0, 0]
    with pytest.raises(ValueError, match="none of 32 samples could be read. The first: .*no such file"):
        encode_here(tmp_path, "none", "--cache_dir", tmp_path / "new_cache")
    assert not (tmp_path / "new_cache/broken_samples.tsv").exists()
