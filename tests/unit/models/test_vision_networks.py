"""CLIP, DINO and I3D against the reference, and the files that they are published in."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest
from golden_cases import GOLDEN, case, given, load_case, relative_difference
from golden_eval import EVAL_CASES, build_network, openai_state
from mindspore import Tensor

from opensora.checkpoint.files import open_state
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models.vision.clip import CLIPModel
from opensora.models.vision.dino import DINO
from opensora.models.vision.i3d import I3D

TORCHSCRIPT = GOLDEN / "eval_clip_torchscript.pt"


def check_clip(model: CLIPModel, name: str) -> None:
    reference, shape = load_case(name), case(name, EVAL_CASES)["inputs"]["pixel_values"]["shape"]
    texts, images = model(Tensor(reference["input_ids"].astype(np.int32)), Tensor(given(name, "pixel_values", shape)))
    assert relative_difference(texts.asnumpy(), reference["text_features"]) < 1e-4
    assert relative_difference(images.asnumpy(), reference["image_features"]) < 1e-4


@pytest.mark.parametrize("name", ["eval_clip_tiny", "eval_clip_eos"])
def test_clip_matches_reference(name, mode):
    check_clip(build_network(CLIPModel, name), name)


def test_openais_names_are_known():
    name = "eval_clip_openai"
    model = CLIPModel(**case(name, EVAL_CASES)["config"])
    model.load_torch_state(openai_state(name))
    check_clip(model.set_train(False), name)


def test_openais_archive_is_read_without_torch():
    state = open_state(TORCHSCRIPT)
    expected = {
        key: (kind, tuple(shape))
        for key, (kind, shape) in case("eval_clip_torchscript", EVAL_CASES)["state_dict"].items()
    }
    kinds = {"F16": "float16", "F32": "float32", "I64": "int64"}
    assert {key: (kinds[value.dtype], tuple(value.shape)) for key, value in state.items()} == expected
    check_clip(CLIPModel.load(TORCHSCRIPT).set_train(False), "eval_clip_torchscript")


def test_folder_of_transformers_is_read(tmp_path):
    name = "eval_clip_tiny"
    model = build_network(CLIPModel, name)
    config = case(name, EVAL_CASES)["config"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"], **config}))
    state = {key: ArrayTensor(value) for key, value in model.torch_state().items()}
    state["vision_model.embeddings.position_ids"] = ArrayTensor(np.arange(10)[None])
    write_safetensors(tmp_path / "model.safetensors", state)
    check_clip(CLIPModel.load(tmp_path).set_train(False), name)


def test_other_weights_are_refused(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"weight": ArrayTensor(np.zeros(3, np.float32))})
    with pytest.raises(ValueError, match="model.safetensors: neither a CLIP of OpenAI"):
        CLIPModel.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="images of 32x48, but the model takes 48 squared"):
        build_network(CLIPModel, "eval_clip_tiny").image_features(Tensor(np.zeros((1, 3, 32, 48), np.float32)))


def test_dino_matches_reference_for_images_of_any_shape(mode):
    name = "eval_dino_tiny"
    model, reference = build_network(DINO, name), load_case(name)
    for number in range(3):
        x = Tensor(given(name, f"x{number}", case(name, EVAL_CASES)["inputs"][f"x{number}"]["shape"]))
        assert relative_difference(model(x).asnumpy(), reference[f"cls{number}"]) < 1e-4
        if number:
            positions = model.positions(x.shape[2] // 16, x.shape[3] // 16).asnumpy()[..., ::4]
            assert relative_difference(positions, reference[f"pos{number}"]) < 1e-4


def test_i3d_matches_reference_in_every_layer(mode):
    name = "eval_i3d_odd"
    model, reference, description = build_network(I3D, name), load_case(name), case(name, EVAL_CASES)
    x = Tensor(np.clip(given(name, "x", description["inputs"]["x"]["shape"]), -3, 3) / 3).transpose(0, 2, 1, 3, 4)
    compared = 0
    for endpoint, step in zip(model.endpoints, model.steps):
        x = step(x)
        if endpoint in reference:
            output = x.asnumpy().transpose(0, 2, 1, 3, 4)[:, :: description["channel_stride"][endpoint]]
            assert relative_difference(output, reference[endpoint]) < 1e-4
            compared += 1
    assert compared == 7


def test_i3d_logits_match_reference():
    name = "eval_i3d_logits_odd"
    model, reference = build_network(I3D, name), load_case(name)
    x = Tensor(np.clip(given(name, "x", case(name, EVAL_CASES)["inputs"]["x"]["shape"]), -3, 3) / 3)
    features = model.features(x).asnumpy().transpose(0, 2, 1, 3, 4)[:, ::4]
    assert relative_difference(features, reference["features"]) < 1e-4
    assert relative_difference(model(x).asnumpy(), reference["logits"]) < 1e-4
    with pytest.raises(ValueError, match="I3D takes .* of 9 frames or more"):
        model(Tensor(np.zeros((1, 3, 4, 224, 224), np.float32)))


def test_i3d_with_other_names_is_matched_by_the_order_of_its_layers(tmp_path):
    model = build_network(I3D, "eval_i3d_odd")
    state = model.torch_state()
    modules = dict.fromkeys(key.rpartition(".")[0] for key in state)
    by_layer = {name: f"net.layer{number}" for number, name in enumerate(modules)}
    renamed = {f"{by_layer[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": x for key, x in state.items()}
    assert not set(renamed) & set(state)
    write_safetensors(tmp_path / "i3d.safetensors", {key: ArrayTensor(x) for key, x in renamed.items()})
    loaded = I3D.load(tmp_path / "i3d.safetensors")
    assert all(np.array_equal(x, state[key]) for key, x in loaded.torch_state().items())


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16])
def test_16_bits(dtype):
    name = "eval_clip_tiny"
    shape = case(name, EVAL_CASES)["inputs"]["pixel_values"]["shape"]
    model, x = build_network(CLIPModel, name), Tensor(given(name, "pixel_values", shape))
    expected = model.image_features(x).asnumpy()
    actual = model.cast(dtype).image_features(x).astype(ms.float32).asnumpy()
    assert 1e-5 < relative_difference(actual, expected) < 5e-2
