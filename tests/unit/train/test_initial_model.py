"""The model that a training of text to video starts from."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from tiny_models import DIT, LATTE, OPENSORA_V1_2
from torch_files import as_tensors, save_zip

from opensora.config.families import OLDER_PRESETS
from opensora.datasets.t2v.selection import Shape
from opensora.device import Device
from opensora.models import LatteT2V, OpenSoraT2V, OpenSoraT2V_v1_3
from opensora.train.initial_model import build_model, choose_recipe
from opensora.train.recipes import RECIPES
from opensora.train.t2v import T2VTraining, check_one_length
from opensora.train.t2v_options import T2VTrainOptions, parse_options

LATTE_PRESET = "LatteT2V-XL/122"
V1_0 = {key: value for key, value in LATTE.items() if key != "use_rope"}
CAUSAL = "--ae CausalVAEModel_4x8x8"


@pytest.fixture(autouse=True)
def small_preset(monkeypatch):
    """The presets are tiny models of their classes."""
    for name, preset, config in (("LatteT2V", LATTE_PRESET, LATTE), ("OpenSoraT2V", OLDER_PRESETS[0], OPENSORA_V1_2)):
        monkeypatch.setitem(RECIPES, name, RECIPES[name]._replace(presets={preset: config}))


def parsed(flags: str) -> T2VTrainOptions:
    common = "--data_path list.json --output_dir out --ae_path vae --text_encoder_name t5 --num_frames 17"
    return parse_options(f"{common} --max_image_size 64 {flags}".split())[1]


def build(flags: str):
    options = parsed(flags)
    recipe = choose_recipe(options, T2VTraining.model_classes, None)
    return recipe, build_model(recipe, options, DEVICE, None)


DEVICE = Device("CPU", ms.PYNATIVE_MODE, "fp32")


def test_presets_are_those_that_the_flags_name():
    assert {name for recipe in RECIPES.values() for name in recipe.presets} >= set(OLDER_PRESETS)


@pytest.mark.parametrize(
    "preset, model, learned_variance, sizes",
    [
        (LATTE_PRESET, LatteT2V, True, {"video_length": 5, "sample_size": (8, 8), "use_rope": False}),
        (OLDER_PRESETS[0], OpenSoraT2V, False, {"sample_size_t": 5, "sample_size": (8, 8), "use_rope": True}),
    ],
)
def test_preset_gets_the_sizes_of_the_data(preset, model, learned_variance, sizes):
    recipe, built = build(f"{CAUSAL} --model {preset}")
    assert type(built) is model and recipe.learned_variance == learned_variance
    assert {name: getattr(built.config, name) for name in sizes} == sizes
    assert built.config.prediction_type == "epsilon"


def test_images_keep_the_length_of_videos():
    assert build(f"{CAUSAL} --model {LATTE_PRESET} --num_frames 1")[1].config.video_length == LATTE["video_length"]


def test_another_objective_than_that_of_the_weights_is_named(tmp_path, caplog):
    LatteT2V(**V1_0, prediction_type="epsilon", v1_5_scheduler=True).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "opensora"):
        build(f"{CAUSAL} --pretrained {tmp_path}")
        assert f"{tmp_path} was trained with v1_5_scheduler True, this training has v1_5_scheduler None" in caplog.text
        caplog.clear()
        build(f"{CAUSAL} --pretrained {tmp_path} --v1_5_scheduler")
    assert "was trained with" not in caplog.text


def test_checkpoints_of_earlier_versions_record_no_noise_schedule(tmp_path):
    flags = f"{CAUSAL} --model {LATTE_PRESET} --rescale_betas_zero_snr --v1_5_scheduler"
    options = parsed(flags)
    recipe, model = build(f"{CAUSAL} --model {LATTE_PRESET}")
    model.save_pretrained(tmp_path / "model")
    resumed = build_model(recipe, options, DEVICE, tmp_path)
    assert resumed.config.rescale_betas_zero_snr and resumed.config.v1_5_scheduler
    with pytest.raises(ValueError, match="was trained with prediction_type epsilon, now it is v_prediction"):
        build_model(recipe, parsed(f"{flags} --prediction_type v_prediction"), DEVICE, tmp_path)


def test_positions_of_v1_0_belong_to_its_weights(tmp_path):
    """A preset is of v1.1: its positions are divided by another number."""
    LatteT2V(**V1_0).save_pretrained(tmp_path)
    _, model = build(f"{CAUSAL} --model {LATTE_PRESET} --pretrained {tmp_path} --num_frames 65")
    assert model.config.use_rope is None and model.config.temporal_scale == 3
    assert build(f"{CAUSAL} --model {LATTE_PRESET} --num_frames 65")[1].config.temporal_scale == 1


def test_weights_of_a_torch_file_are_loaded_as_far_as_they_fit(tmp_path, caplog):
    state = LatteT2V(**LATTE).torch_state()
    del state["proj_out.bias"]
    file = tmp_path / "t2v.pt"
    save_zip(file, {"model": as_tensors({**state, "temp_embed": np.zeros(3, np.float32)})})
    with caplog.at_level(logging.WARNING, "opensora"):
        _, model = build(f"{CAUSAL} --model {LATTE_PRESET} --pretrained {file}")
    found = model.torch_state()
    assert all((found[name] == value).all() for name, value in state.items())
    assert (
        f"{file}: 1 missing (proj_out.bias), which are initialized randomly; 1 unexpected (temp_embed)" in caplog.text
    )
    save_zip(file, {"model": as_tensors({"other.weight": np.zeros(3, np.float32)})})
    with pytest.raises(ValueError, match=f"^{file}: none of its 1 tensors belongs to LatteT2V"):
        build(f"{CAUSAL} --model {LATTE_PRESET} --pretrained {file}")


@pytest.mark.parametrize(
    "flags, words",
    [
        (f"--model {LATTE_PRESET}", "--ae WFVAEModel_D8_4x8x8 has 8 latent channels, but the transformer needs 4"),
        (f"{CAUSAL} --model {LATTE_PRESET} --sparse1d", "--sparse1d True: LatteT2V has no sparse1d"),
        (f"{CAUSAL} --model {OLDER_PRESETS[0]} --sparse_n 4", "--sparse_n 4: OpenSoraT2V has no sparse_n"),
        (f"{CAUSAL} --model {LATTE_PRESET} --use_rope", "use_rope True is not supported"),
        ("--model {v1_3} --use_image_num 2 --use_img_from_vid", "--use_image_num 2: OpenSoraT2V_v1_3 has no images"),
        ("--model OpenSoraInpaint_v1_3-2B/122", "this command trains OpenSoraT2V_v1_3"),
    ],
)
def test_contradictions_are_refused(flags, words, tmp_path):
    OpenSoraT2V_v1_3.without_weights(**DIT).save_config(tmp_path)
    with pytest.raises(ValueError, match=words):
        build(flags.format(v1_3=tmp_path))


def test_lora_keeps_the_length_of_the_weights(tmp_path):
    LatteT2V(**LATTE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--num_frames 17 gives 5 latent frames, but .* has video_length 2: LoRA"):
        build(f"{CAUSAL} --pretrained {tmp_path} --lora_rank 2")


class Samples:
    """A dataset of samples of these frames."""

    def __init__(self, *frames: int, group_data: bool = True):
        self.options = SimpleNamespace(num_frames=17, group_data=group_data, file="data.txt")
        shapes = [Shape(count, 64, 64) for count in (*frames, 29)]  # of the last there are too few to be used
        self.index = SimpleNamespace(shapes=shapes, shape_counts=[8] * len(frames) + [1])
        self.min_samples = 4


def test_model_of_one_length_refuses_others():
    check_one_length(Samples(1, 17), 4)
    with pytest.raises(ValueError, match="data.txt: has samples of 13x64x64, but the model has positions for 17"):
        check_one_length(Samples(17, 13), 4)
    with pytest.raises(ValueError, match="has samples of 2 sizes, and the model takes no padded batches"):
        check_one_length(Samples(1, 17, group_data=False), 4)


@pytest.mark.parametrize(
    "flags",
    [
        # Open-Sora-Plan v1.0, then v1.1, then v1.2
        "--model LatteT2V-XL/122 --text_encoder_name DeepFloyd/t5-v1_1-xxl --dataset t2v --ae CausalVAEModel_4x8x8 "
        "--ae_path vae --data_path list.json --sample_rate 1 --num_frames 17 --max_image_size 256 "
        "--gradient_checkpointing --train_batch_size=4 --dataloader_num_workers 10 --gradient_accumulation_steps=1 "
        "--max_train_steps=1000000 --learning_rate=2e-05 --lr_scheduler=constant --lr_warmup_steps=0 "
        "--mixed_precision=bf16 --checkpointing_steps=500 --output_dir=out --pretrained t2v.pt --model_max_length 300 "
        "--use_image_num 4 --use_img_from_vid --enable_tiling --cache_dir ./cache_dir",
        "--model LatteT2V-XL/122 --text_encoder_name DeepFloyd/t5-v1_1-xxl --dataset t2v --ae CausalVAEModel_4x8x8 "
        "--ae_path vae --video_data v.txt --image_data i.txt --sample_rate 1 --num_frames 221 --max_image_size 512 "
        "--gradient_checkpointing --train_batch_size=1 --max_train_steps=1000000 --start_learning_rate=2e-05 "
        "--use_image_num 8 --model_max_length 300 --enable_tiling --pretrained a.safetensors --output_dir=out "
        "--resume_from_checkpoint=latest --tile_overlap_factor 0.25",
        "--model OpenSoraT2V-ROPE-L/122 --text_encoder_name google/mt5-xxl --dataset t2v --data data.txt "
        "--ae CausalVAEModel_D4_4x8x8 --ae_path vae --sample_rate 1 --num_frames 29 --max_height 480 --max_width 640 "
        "--force_resolution --interpolation_scale_t 1.0 --interpolation_scale_h 1.0 --interpolation_scale_w 1.0 "
        "--gradient_checkpointing --train_batch_size=1 --max_train_steps=1000000 --learning_rate=1e-4 "
        "--lr_scheduler=constant --mixed_precision=bf16 --model_max_length 512 --use_image_num 0 --enable_tiling "
        "--tile_overlap_factor 0.125 --snr_gamma 5.0 --use_ema --ema_start_step 0 --ema_decay 0.999 --cfg 0.1 "
        "--noise_offset 0.02 --use_rope --resume_from_checkpoint=latest --group_frame --speed_factor 1.0 "
        "--drop_short_ratio 1.0 --hw_stride 32 --sp_size 8 --train_sp_batch_size 2 --train_fps 24 --output_dir=out",
    ],
)
def test_flags_of_the_published_commands(flags):
    _, options, args = parse_options(flags.split())
    assert options.model in OLDER_PRESETS and args.output_dir == "out" and options.data.force_resolution
