"""STDiT2: outputs against the reference, gradients, loading, invariants."""

from __future__ import annotations

import json
from contextlib import contextmanager

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, case_names, gradient_difference, relative_difference
from golden_models import OPENSORA_CASES, build, stdit_inputs, stdit_rows
from mindspore import Tensor, nn
from torch_files import save_zip, tensor

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import STDiT2
from opensora.models.stdit.config import PRESETS
from opensora.train.optimizer import Optimizer

# Odd sizes, conditioning frames, a text mask, qk norm: all features.
FULL = "stdit2_qknorm_xmask"
TINY = dict(case(FULL, OPENSORA_CASES)["config"], depth=1)


@contextmanager
def graph_mode():
    ms.set_context(mode=0)
    try:
        yield
    finally:
        ms.set_context(mode=1)


class Loss(nn.Cell):
    """Mean squared error against a fixed target."""

    def __init__(self, model: nn.Cell, rows: slice = slice(None)):
        super().__init__(auto_prefix=False)
        self.model = model
        shape = tuple(case(FULL, OPENSORA_CASES)["outputs"]["output"])
        self.target = Tensor(np.random.RandomState(0).standard_normal(shape)[rows], ms.float32)

    def construct(self, x, timestep, y, mask, x_mask, num_frames, height, width, ar, fps):
        output = self.model(x, timestep, y, mask, x_mask, num_frames, height, width, ar, fps)
        return (output - self.target).square().mean()


def loss_inputs(rows: slice = slice(None)) -> list:
    inputs = stdit_inputs(FULL)
    names = ("x", "timestep", "y", "mask", "x_mask", "num_frames", "height", "width", "ar", "fps")
    return [inputs[name][rows] for name in names]


def gradients(model: nn.Cell, rows: slice = slice(None)) -> list[np.ndarray]:
    loss = Loss(model, rows)
    return [gradient.asnumpy() for gradient in ms.grad(loss, None, model.trainable_params())(*loss_inputs(rows))]


@pytest.mark.parametrize("name", case_names("stdit2_", OPENSORA_CASES))
def test_output_matches_reference(name):
    rows = stdit_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize("name", ["stdit2_240p", "stdit2_cfg3"])
def test_output_matches_reference_in_graph_mode(name):
    with graph_mode():
        rows = stdit_rows(name)
    assert max(rows.values()) < 1e-4, rows


def test_every_trainable_parameter_has_a_gradient():
    model = build(FULL, OPENSORA_CASES)
    found = dict(zip([name for name, p in model.parameters_and_names() if p.requires_grad], gradients(model)))
    assert "y_embedder.y_embedding" not in found and len(found) == len(model.torch_state()) - 2  # and rope.freqs
    wrong = [name for name, gradient in found.items() if not np.isfinite(gradient).all() or not gradient.any()]
    assert not wrong


def test_gradients_match_finite_differences():
    """Along a random direction of all parameters."""
    model, random = build(FULL, OPENSORA_CASES), np.random.RandomState(1)
    parameters = model.trainable_params()
    start = [parameter.asnumpy() for parameter in parameters]
    direction = [random.standard_normal(value.shape).astype(np.float32) * value.std() for value in start]
    slope = sum((gradient * along).sum() for gradient, along in zip(gradients(model), direction))
    losses = []
    for step in (1e-3, -1e-3):
        for parameter, value, along in zip(parameters, start, direction):
            parameter.set_data(Tensor(value + np.float32(step) * along))
        losses.append(float(Loss(model)(*loss_inputs())))
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=1e-2)


def test_batch_gradients_are_means_over_samples():
    model = build(FULL, OPENSORA_CASES)
    together = gradients(model)
    alone = [gradients(model, slice(i, i + 1)) for i in range(2)]
    assert gradient_difference(together, [(first + second) / 2 for first, second in zip(*alone)]) < 1e-4


def test_gradients_in_graph_mode_equal_pynative():
    model = build(FULL, OPENSORA_CASES, depth=1)
    expected = gradients(model)
    with graph_mode():
        actual = gradients(model)
    assert gradient_difference(actual, expected) < 1e-4


def test_recompute_gives_the_same_gradient_norm():
    norms = []
    for recomputes in (False, True):
        model = build(FULL, OPENSORA_CASES)
        optimizer = Optimizer(model, gradient_checkpointing=recomputes)
        optimizer.backward(Loss(model), *loss_inputs())
        norms.append(optimizer.step(1e-3).norm)
    assert norms[0] > 0 and norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_mask_without_conditioning_frames_does_not_change_the_output():
    model, inputs = build("stdit2_tiny", OPENSORA_CASES), stdit_inputs("stdit2_tiny")
    shape = inputs["x"].shape
    masked = model(**inputs, x_mask=Tensor(np.ones((shape[0], shape[2]), bool)))
    assert relative_difference(masked.asnumpy(), model(**inputs).asnumpy()) < 1e-6


def test_conditioning_with_fewer_rows_is_repeated():
    model, inputs = build("stdit2_tiny", OPENSORA_CASES), stdit_inputs("stdit2_tiny")
    same = ("mask", "height", "width", "num_frames", "ar", "fps")
    inputs.update({key: Tensor(np.repeat(inputs[key][:1].asnumpy(), 2, 0)) for key in same})
    short = {**inputs, **{key: inputs[key][:1] for key in same}}
    assert relative_difference(model(**short).asnumpy(), model(**inputs).asnumpy()) < 1e-6


def test_text_padding_does_not_change_the_output():
    model, inputs = build("stdit2_tiny", OPENSORA_CASES), stdit_inputs("stdit2_tiny")
    one = {key: value[1:] for key, value in inputs.items() if key != "mask"}  # five tokens of text
    masked = model(**one, mask=inputs["mask"][1:]).asnumpy()
    truncated = {**one, "y": one["y"][:, :, :5]}
    assert relative_difference(model(**truncated).asnumpy(), masked) < 1e-5


def test_half_precision_is_close_to_float32():
    model, inputs = build(FULL, OPENSORA_CASES), stdit_inputs(FULL)
    expected = model(**inputs)
    output = model.cast(ms.float16)(**inputs)
    assert model.blocks[0].attn.q_norm.weight.dtype == ms.float32
    assert output.dtype == ms.float32 and relative_difference(output.asnumpy(), expected.asnumpy()) < 2e-2


def test_initialization_matches_the_published_one():
    ms.set_seed(0)
    model = STDiT2(**{**TINY, "hidden_size": 96})
    inputs = stdit_inputs(FULL)
    assert not model(**inputs).asnumpy().any()
    state = model.torch_state()
    assert not state["blocks.0.cross_attn.proj.weight"].any() and not state["blocks.0.attn_temp.proj.weight"].any()
    assert not any(value.any() for name, value in state.items() if name.endswith(".bias"))
    deviations = {
        "t_embedder.mlp.0.weight": 0.02,
        "t_block.1.weight": 0.02,
        "y_embedder.y_proj.fc2.weight": 0.02,
        "y_embedder.y_embedding": 32**-0.5,
        "blocks.0.scale_shift_table": 96**-0.5,
        "blocks.0.mlp.fc1.weight": (2 / (96 + 384)) ** 0.5,
        "csize_embedder.mlp.0.weight": (2 / 288) ** 0.5,
        "x_embedder.proj.weight": (2 / (16 + 96)) ** 0.5,
        "blocks.0.attn.q_norm.weight": 0.0,
    }
    for name, deviation in deviations.items():
        assert state[name].std() == pytest.approx(deviation, rel=0.1), name


@pytest.mark.parametrize(
    "freeze, frozen",
    [
        (None, lambda name: False),
        ("not_temporal", lambda name: "attn_temp" not in name),
        ("text", lambda name: "cross_attn" in name),
    ],
)
def test_freeze_disables_gradients(freeze, frozen):
    model = STDiT2(**TINY, freeze=freeze)
    for name, parameter in model.parameters_and_names():
        assert parameter.requires_grad == (name != "y_embedder.y_embedding" and not frozen(name))


def random_state(**changes) -> dict:
    random = np.random.RandomState(0)
    return {
        name: random.standard_normal(value.shape).astype(np.float32)
        for name, value in STDiT2(**{**TINY, **changes}).torch_state().items()
    }


@pytest.mark.parametrize("length", [4, 12, 20])
def test_open_sora_state_dict_loads(length, tmp_path):
    """Position tables are ignored, the null text is truncated or extended, the RoPE frequencies are constant."""
    state = random_state(model_max_length=length)
    extra = {"pos_embed": np.zeros((1, 4, 48), np.float32), "pos_embed_temporal": np.zeros((1, 2, 48), np.float32)}
    file = tmp_path / "ema.pt"
    save_zip(file, {name: tensor(value) for name, value in {**state, **extra}.items()})
    loaded = STDiT2.from_pretrained(file, **TINY).torch_state()
    null = state.pop("y_embedder.y_embedding")
    rows = np.minimum(np.arange(TINY["model_max_length"]), length - 1)
    assert (loaded.pop("y_embedder.y_embedding") == null[rows]).all()
    state.pop("rope.freqs")
    assert np.allclose(loaded.pop("rope.freqs"), 10000 ** (-np.arange(6) / 6))
    assert all((loaded[name] == state[name]).all() for name in state) and set(loaded) == set(state)


def test_training_run_folder_loads(tmp_path):
    state, folder = random_state(), tmp_path / "epoch0-global_step100" / "model"
    folder.mkdir(parents=True)
    names = sorted(state)
    shards = {f"pytorch_model-0000{i}.bin": names[i::2] for i in range(2)}
    for file, own in shards.items():
        save_zip(folder / file, {name: tensor(state[name]) for name in own})
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = STDiT2.from_pretrained(folder.parent, **TINY).torch_state()
    assert all((loaded[name] == state[name]).all() for name in state if name != "rope.freqs")


def test_save_pretrained_round_trip(tmp_path):
    model = STDiT2(**TINY)
    model.save_pretrained(tmp_path)
    loaded = STDiT2.from_pretrained(tmp_path)
    assert loaded.config == STDiT2(**TINY).config
    assert all((value == loaded.torch_state()[name]).all() for name, value in model.torch_state().items())
    assert STDiT2.from_pretrained(tmp_path, freeze="text", model_max_length=5).config.model_max_length == 5


def test_missing_parameters_keep_initial_values_and_are_reported(tmp_path, capsys):
    state = {
        name: ArrayTensor(value)
        for name, value in random_state().items()
        if "fps_embedder" not in name and name != "blocks.0.attn_temp.proj.weight"
    }
    write_safetensors(tmp_path / "model.safetensors", {**state, "z_embedder": ArrayTensor(np.zeros(1, np.float32))})
    loaded = STDiT2.from_pretrained(tmp_path / "model.safetensors", **TINY).torch_state()
    assert not loaded["blocks.0.attn_temp.proj.weight"].any() and loaded["fps_embedder.mlp.0.weight"].any()
    assert (loaded["blocks.0.attn.proj.bias"] == state["blocks.0.attn.proj.bias"].array).all()
    note = capsys.readouterr().err
    assert "5 parameters are missing (fps_embedder" in note and "1 tensors are not used (z_embedder)" in note


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mlp_ratio": 2.0}, "wrong shapes"),
        ({"num_heads": 2}, "6 frequencies, which do not match 2 heads"),
        ({"caption_channels": 16}, "wrong shapes"),
    ],
)
def test_weights_of_another_size_are_rejected(changes, message, tmp_path):
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {name: ArrayTensor(value) for name, value in random_state().items()})
    with pytest.raises(ValueError, match=message) as error:
        STDiT2.from_pretrained(file, **{**TINY, **changes})
    assert str(error.value).startswith(str(file))


def test_weights_of_another_model_are_rejected(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"encoder.weight": ArrayTensor(np.zeros(3, np.float32))})
    with pytest.raises(ValueError, match="none of the weights of STDiT2"):
        STDiT2.from_pretrained(tmp_path, **TINY)


def test_published_preset_builds():
    config = STDiT2.without_weights(**PRESETS["STDiT2-XL/2"], enable_flashattn=True, qk_norm=True).config
    assert (config.depth, config.hidden_size, config.num_heads, config.head_dim) == (28, 1152, 16, 72)
    assert config.enable_flash_attn and config.out_channels == 8


def test_missing_video_description_is_rejected():
    inputs = stdit_inputs(FULL)
    del inputs["fps"]
    with pytest.raises(ValueError, match="needs num_frames, height, width, ar and fps"):
        STDiT2(**TINY)(**inputs)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"freeze": "all"}, "freeze 'all' is not one of"),
        ({"hidden_size": 50}, "hidden_size 50"),
        ({"qknorm": True}, "did you mean qk_norm"),
        ({"drop_path": 0.1}, "drop_path 0.1 is not supported"),
    ],
)
def test_invalid_config_is_rejected(config, message):
    with pytest.raises(ValueError, match=message):
        STDiT2(**{**TINY, **config})
