"""The transformers of Open-Sora v1.0: outputs against the reference, loading, precision, gradients, streaming."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, case_names, gradient_difference, relative_difference
from golden_models import HPCAITECH_V1_CASES, MODELS, build, hpcaitech_v1_inputs, hpcaitech_v1_rows
from mindspore import Tensor, nn
from torch_files import save_zip, tensor

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import DiT, Latte, PixArt, PixArtMS, STDiT
from opensora.models.dit_xl import config as dit_config
from opensora.models.lora import linear_shapes, select_layers
from opensora.models.pixart import config as pixart_config
from opensora.models.stdit.config import V1_0_PRESETS
from opensora.parallel.process_group import World
from opensora.parallel.zero import ShardedBlock, make_buckets
from opensora.train.optimizer import Optimizer

PREFIXES = ("stdit1_", "dit_xl_", "latte_hpc_", "pixart_")
CASES = [name for prefix in PREFIXES for name in case_names(prefix, HPCAITECH_V1_CASES)]
# One of each class; with conditioning frames, padded texts, classes.
EACH = ("stdit1_xmask", "pixart_video", "pixart_ms", "dit_xl_2x2", "latte_hpc_text")
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2}


def config_of(name: str, **changes) -> dict:
    return {**case(name, HPCAITECH_V1_CASES)["config"], **changes}


def class_of(name: str):
    return MODELS[case(name, HPCAITECH_V1_CASES)["model"]]


@pytest.mark.parametrize("mode", [1, 0], ids=["pynative", "graph"], indirect=True)
@pytest.mark.parametrize("name", CASES)  # consecutive modes of a case share its model
def test_output_matches_reference(name, mode):
    rows = hpcaitech_v1_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", EACH)
def test_16_bits(name, precision):
    inputs = hpcaitech_v1_inputs(name)
    expected = build(name, HPCAITECH_V1_CASES)(**inputs).asnumpy()
    model = build(name, HPCAITECH_V1_CASES).cast({"fp16": ms.float16, "bf16": ms.bfloat16}[precision])
    single = {key for key, parameter in model.parameters_and_names() if parameter.dtype == ms.float32}
    assert single == model.float32_parameters()
    difference = relative_difference(model(**inputs).asnumpy(), expected)
    assert TOLERANCE[precision] / 100 < difference < TOLERANCE[precision]


@pytest.mark.parametrize(
    "model, config, count",
    [
        (STDiT, V1_0_PRESETS["STDiT-XL/2"], 759_620_768),
        (PixArt, pixart_config.PRESETS["PixArt-XL/2"], 610_856_096),
        (DiT, dit_config.PRESETS["DiT-XL/2"], 675.6e6),
        (DiT, {**dit_config.PRESETS["DiT-XL/2"], "condition": "label_101"}, 673.8e6),
        (Latte, dit_config.LATTE_PRESETS["Latte-XL/2"], 675.6e6),
    ],
)
def test_published_sizes(model, config, count):
    built = model.without_weights(**config)
    size = sum(parameter.size for parameter in built.get_parameters() if parameter.requires_grad)
    assert size == count if isinstance(count, int) else abs(size - count) < 0.05e6


@pytest.mark.parametrize("name", EACH)
def test_save_and_load(name, tmp_path):
    """Position embeddings of a file have no effect."""
    saved = build(name, HPCAITECH_V1_CASES)
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == type(saved).__name__
    state = saved.torch_state()
    assert set(case(name, HPCAITECH_V1_CASES)["fixed"]) == set(saved.torch_buffers()) <= set(state)
    wrong = {**state, **{key: np.full((1, 5, 7), 7, np.float32) for key in saved.torch_buffers()}}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write_safetensors(path, {key: ArrayTensor(value) for key, value in wrong.items()})
    loaded = type(saved).from_pretrained(tmp_path)
    assert loaded.config == saved.config
    found = loaded.torch_state()
    assert found.keys() == state.keys() and all((found[key] == value).all() for key, value in state.items())


def test_pth_with_ema_weights(tmp_path, capsys):
    """The published files hold a plain state dict; those of trainings the EMA weights beside it."""
    name = "stdit1_video"
    state = build(name, HPCAITECH_V1_CASES).torch_state()
    other = {key: tensor(np.zeros_like(value)) for key, value in state.items()}
    tensors = {key: tensor(value) for key, value in state.items()}
    for file, content in {"plain.pth": tensors, "ema.pth": {**other, "ema": tensors}}.items():
        save_zip(tmp_path / file, content)
        found = STDiT.from_pretrained(tmp_path / file, **config_of(name)).torch_state()
        assert all((found[key] == value).all() for key, value in state.items())
    assert capsys.readouterr().err == ""


def test_training_of_stdit_starts_from_an_image_model(tmp_path, capsys):
    """PixArt's files have no temporal attention, a projection of 2-D patches and a text of another length."""
    config = config_of("pixart_image", input_size=[4, 8, 6], no_temporal_pos_emb=False)
    random = np.random.RandomState(0)
    state = {
        key: random.standard_normal(value.shape).astype(np.float32)
        for key, value in PixArt(**config).torch_state().items()
    }
    image = {**state, "pos_embed": np.zeros((1, 64, 48), np.float32)}
    image["x_embedder.proj.weight"] = state["x_embedder.proj.weight"][:, :, 0]
    save_zip(tmp_path / "x.pth", {"state_dict": {key: tensor(value) for key, value in image.items()}})
    model = STDiT.from_pretrained(tmp_path / "x.pth", **{**config, "model_max_length": 20})
    found = model.torch_state()
    assert "12 parameters are missing (blocks.0.attn_temp" in capsys.readouterr().err
    assert not found["blocks.1.attn_temp.proj.weight"].any() and found["blocks.1.attn_temp.qkv.weight"].any()
    null = "y_embedder.y_embedding"
    assert (found[null] == state[null][np.minimum(np.arange(20), 11)]).all()
    kept = state.keys() - {null, *model.torch_buffers()}
    assert all((found[key] == state[key]).all() for key in kept)


@pytest.mark.parametrize("key", ["model", "ema"])
def test_training_of_dit_starts_from_classes_of_images(key, tmp_path, capsys):
    """The weights of DiT, and of Latte under `ema`, for another condition."""
    config = config_of("dit_xl_text", condition="label_10")
    state = DiT(**config).torch_state()
    image = {name: value for name, value in state.items() if name not in ("pos_embed_spatial", "pos_embed_temporal")}
    image["x_embedder.proj.weight"] = state["x_embedder.proj.weight"][:, :, 0]
    image.update(pos_embed=np.zeros((1, 16, 48), np.float32), temp_embed=np.zeros((1, 16, 48), np.float32))
    save_zip(tmp_path / "x.pt", {key: {name: tensor(value) for name, value in image.items()}})
    found = DiT.from_pretrained(tmp_path / "x.pt", **config).torch_state()
    assert all((found[name] == value).all() for name, value in state.items())
    assert capsys.readouterr().err == ""
    Latte.from_pretrained(tmp_path / "x.pt", **{**config, "condition": "text"})
    note = capsys.readouterr().err
    assert "5 parameters are missing (y_embedder.y_embedding" in note
    assert "1 tensors are not used (y_embedder.embedding_table.weight)" in note


class Loss(nn.Cell):
    """The mean square of a prediction."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *inputs):
        return self.model(*inputs).square().mean()


@pytest.mark.parametrize("name", ["stdit1_xmask", "pixart_video", "dit_xl_2x2", "latte_hpc_text"])
def test_gradients_of_sharded_and_recomputed_blocks(name):
    model, inputs = build(name, HPCAITECH_V1_CASES), hpcaitech_v1_inputs(name)
    inputs = [inputs[key] for key in ("x", "timestep", "y", "mask", "x_mask") if key in inputs]
    parameters = {key: p for key, p in model.parameters_and_names() if p.requires_grad}
    expected = [gradient.asnumpy() for gradient in ms.grad(Loss(model), None, list(parameters.values()))(*inputs)]
    assert all(np.isfinite(gradient).all() and gradient.any() for gradient in expected)

    blocks = model.ordered_blocks()
    ids = {id(parameter): key for key, parameter in parameters.items()}
    buckets = [make_buckets({ids[id(p)]: p for p in block.get_parameters()}, 0, World()) for block in blocks]
    model.replace_blocks([ShardedBlock(block, own) for block, own in zip(blocks, buckets)])
    outside = [key for key in parameters if not key.startswith("blocks.")]
    found = dict(zip(outside, ms.grad(Loss(model), None, [parameters[key] for key in outside])(*inputs)))
    for own in buckets:
        for bucket in own:
            found.update(bucket.unshard(bucket.take_gradient()))
    assert gradient_difference([np.asarray(found[key]) for key in parameters], expected) < 1e-4

    recomputed = build(name, HPCAITECH_V1_CASES)
    optimizer = Optimizer(recomputed, max_grad_norm=None, gradient_checkpointing=True)
    optimizer.backward(Loss(recomputed), *inputs)
    norm = np.sqrt(sum(np.square(gradient, dtype=np.float64).sum() for gradient in expected))
    assert optimizer.step(1e-3).norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_streamed_blocks_compute_the_same(name, tmp_path):
    model, inputs = build(name, HPCAITECH_V1_CASES), hpcaitech_v1_inputs(name)
    model.save_pretrained(tmp_path)
    streamed = type(model).from_pretrained(tmp_path, streamed=True)
    assert streamed.is_streamed
    assert (streamed(**inputs).asnumpy() == model(**inputs).asnumpy()).all()


@pytest.mark.parametrize("name, per_block", [("stdit1_video", 7), ("pixart_image", 5), ("dit_xl_text", 2)])
def test_lora_adapts_attention(name, per_block):
    model = class_of(name).without_weights(**config_of(name))
    chosen = select_layers(list(linear_shapes(model)), model.lora_targets)
    assert len(chosen) == per_block * model.config.depth and all("attn" in layer for layer in chosen)


def test_null_condition():
    assert STDiT(**config_of("stdit1_video")).null_text(3).shape == (3, 1, 12, 32)
    assert DiT(**config_of("dit_xl_text")).null_text(2).shape == (2, 1, 1, 32)
    assert DiT(**config_of("dit_xl_label")).null_text(2).asnumpy().tolist() == [10, 10]


def test_freeze():
    model = STDiT(**config_of("stdit1_video", freeze="not_temporal"))
    assert all(("attn_temp" in name) == p.requires_grad for name, p in model.parameters_and_names())


def test_latents_of_another_size_are_rejected(mode):
    for name, size in (("stdit1_video", (4, 8, 8)), ("dit_xl_text", (2, 8, 8)), ("pixart_ms", (1, 12, 12))):
        inputs = {**hpcaitech_v1_inputs(name), "x": Tensor(np.zeros((1, 4, *size), np.float32))}
        with pytest.raises(ValueError, match=r"latents of \(\d, .*\) frames, rows and columns"):
            class_of(name)(**config_of(name))(**inputs)


def test_multiscale_model_accepts_other_shapes_of_as_many_patches():
    inputs = hpcaitech_v1_inputs("pixart_ms")
    model = PixArtMS(**config_of("pixart_ms"))
    inputs["x"] = Tensor(np.zeros((2, 4, 1, 8, 12), np.float32))
    assert model(**inputs).shape == (2, 8, 1, 8, 12)
    del inputs["data_info"]
    with pytest.raises(ValueError, match="PixArtMS needs data_info, the height, width"):
        model(**inputs)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("stdit1_video", {"no_temporal_pos_emb": True}, "no_temporal_pos_emb True is not supported; STDiT needs False"),
        ("stdit1_video", {"input_size": [4, 7, 6]}, r"input_size \[4, 7, 6\] is not a multiple of patch_size"),
        ("stdit1_video", {"time_scale": 0}, "time_scale 0 should be positive"),
        ("stdit1_video", {"space_scal": 1}, "did you mean space_scale"),
        ("stdit1_video", {"freeze": "all"}, "freeze 'all' is not one of"),
        ("pixart_ms", {"hidden_size": 52}, "hidden_size 52 is not a multiple of 12"),
        ("dit_xl_text", {"condition": "label_0"}, "condition 'label_0' should be 'text' or 'label_N'"),
        ("dit_xl_text", {"input_size": [4, 8, 6]}, "should have as many rows as columns"),
        (
            "latte_hpc_text",
            {"no_temporal_pos_emb": True},
            "no_temporal_pos_emb True is not supported; Latte needs False",
        ),
    ],
)
def test_unsupported_configurations_are_rejected(name, changes, message):
    with pytest.raises(ValueError, match=message):
        class_of(name).without_weights(**config_of(name, **changes))
