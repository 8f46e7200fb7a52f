"""LoRA files that cannot be applied exactly are refused in one line that names the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lora_files import DIALECTS, MODULES, random_lora, save_peft, tensors_of
from safetensors.numpy import save_file

from opensora.checkpoint.lora.files import read_lora, read_settings
from opensora.errors import UserError

Q = "transformer_blocks.0.attn1.to_q"
A, B = f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight"


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def refusal(path) -> str:
    """The one-line error of reading a file."""
    with pytest.raises(UserError) as caught:
        read_lora(path, MODULES)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and path.name in message
    return message


@pytest.mark.parametrize(
    "changes, message",
    [
        ({A: None}, "'transformer.transformer_blocks.0.attn1.to_q' has no lora_A"),
        ({B: None}, "has no lora_B"),
        ({A: zeros(3, 5)}, "has the rank 3 in A and 2 in B"),
        ({A: zeros(0, 5), B: zeros(6, 0)}, "has the rank 0 in A and 0 in B"),
        ({A: zeros(5000, 5), B: zeros(6, 5000)}, "has the rank 5000"),
        ({A: zeros(2, 7)}, "is for a layer of shape (6, 7), but that of this model has (6, 5)"),
        ({A: zeros(2, 5, 1, 1)}, "has the shape (2, 5, 1, 1), not that of a matrix"),
        ({A: np.full((2, 5), np.nan, np.float32)}, "holds NaN or infinity"),
        ({B: np.full((6, 2), 1e300)}, "holds NaN or infinity"),
        ({A: np.ones((2, 5), np.int8)}, "holds integers (I8)"),
        ({f"transformer.{Q}.alpha": np.array([1, 2], np.float32)}, "has the shape (2,); it should be one number"),
        ({f"transformer.{Q}.alpha": np.array(np.nan)}, "should be a number from 0"),
        ({f"transformer.{Q}.alpha": np.array(-1.0)}, "should be a number from 0"),
        ({"transformer.norm.alpha": np.array(1.0)}, "1 of 6 layers are not linear layers of this model"),
        ({f"{Q}.lora_A.weight": zeros(2, 5), f"{Q}.lora_B.weight": zeros(6, 2)}, f"the layer {Q} comes twice, as"),
        ({f"transformer.{Q}.lora_A.other.weight": zeros(2, 5)}, "comes twice; save one adapter in each file"),
        ({f"transformer.{Q}s.lora_A.weight": zeros(2, 5)}, f"'transformer.{Q}s' (did you mean {Q}?)"),
        ({f"transformer.{Q}.lora_magnitude_vector": zeros(6)}, "is of DoRA, which is not supported"),
        ({f"lora_unet_{Q.replace('.', '_')}.dora_scale": zeros(6)}, "is of DoRA"),
        ({f"transformer.{Q}.lora_B.bias": zeros(6)}, "is of LoRA with biases"),
        ({f"{Q}.hada_w1_a": zeros(2, 2)}, "is of LoHa"),
        ({f"{Q}.lokr_w1": zeros(2, 2)}, "is of LoKr"),
        ({f"{Q}.diff": zeros(6, 5)}, "is of a difference of whole tensors"),
        ({f"{Q}.lora_mid.weight": zeros(2, 2, 3, 3)}, "is of LoRA of convolutions"),
        ({"lora_te1_text_model_layers_0_q.lora_down.weight": zeros(2, 5)}, "1 of 11 tensors are for the text encoder"),
        ({"text_encoder.layers.0.q.lora_A.weight": zeros(2, 5)}, "are for the text encoder"),
        ({"transformer.proj_out.weight": zeros(4, 5)}, "'transformer.proj_out.weight' is not part of a LoRA"),
        ({"x" * 2000: zeros(1)}, "is not part of a LoRA"),
    ],
)
def test_tensors_that_cannot_be_applied_are_refused(tmp_path, changes, message):
    tensors = {**tensors_of(random_lora(), DIALECTS["diffusers"]), **changes}
    path = tmp_path / "x.safetensors"
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    assert message in refusal(path)


def test_lora_of_another_model_is_refused(tmp_path):
    other = {f"layers.{i}.to_q": (6, 5) for i in range(3)}
    for name in ("diffusers", "kohya"):
        save_file(tensors_of(random_lora(modules=other), DIALECTS[name]), tmp_path / "x.safetensors")
        assert "3 of 3 layers are not linear layers of this model" in refusal(tmp_path / "x.safetensors")


def test_name_that_two_layers_would_have_is_refused(tmp_path):
    """Kohya's names replace the dots by underscores."""
    modules = {"a.b_c": (6, 5), "a_b.c": (6, 5)}
    save_file(tensors_of(random_lora(modules={"a.b_c": (6, 5)}), DIALECTS["kohya"]), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="1 of 1 layers are not linear layers"):
        read_lora(tmp_path / "x.safetensors", modules)


def test_whole_models_and_other_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({f"{name}.weight": zeros(*shape) for name, shape in MODULES.items()}, path)
    assert "holds a whole model, not a LoRA" in refusal(path)
    save_file({"a": zeros(2), "b.alpha": zeros(1)}, path)
    assert "holds no LoRA, whose tensors end in" in refusal(path)
    save_file({}, path)
    assert "holds no tensors" in refusal(path)
    path.write_bytes(b"")
    assert "or truncated" in refusal(path)


@pytest.mark.parametrize(
    "config, message",
    [
        ("{", "not json"),
        ("[1]", "should be a json object"),
        ({"r": 2}, "lora_alpha None: should be a number"),
        ({"r": 2.5, "lora_alpha": 4}, "r 2.5: should be a whole number"),
        ({"r": True, "lora_alpha": 4}, "r True: should be a whole number"),
        ({"r": 10**12, "lora_alpha": 4}, "should be a whole number"),
        ({"r": 2, "lora_alpha": "1e999"}, "lora_alpha '1e999': should be a number"),
        ({"r": 2, "lora_alpha": -4}, "lora_alpha -4: should be a number from 0"),
        ({"r": 3, "lora_alpha": 4}, "has the rank 2, but the settings of the file say 3"),
        ({"r": 2, "lora_alpha": 4, "rank_pattern": {"to_q": 3}}, "the settings of the file say 3"),
        ({"r": 2, "lora_alpha": 4, "rank_pattern": [3]}, "rank_pattern should be a json object"),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"(a+)+": 3}}, "is a regular expression"),
        ({"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": None}}, "alpha_pattern 'to_q' None: should be a number"),
        ({"r": 2, "lora_alpha": 4, "target_modules": [3]}, "target_modules [3] should be a list of names"),
        ({"r": 2, "lora_alpha": 4, "lora_dropout": 2}, "lora_dropout 2: should be a number from 0 to 1"),
        ({"r": 2, "lora_alpha": 4, "use_rslora": "yes"}, "use_rslora 'yes' should be true or false"),
        ({"r": 2, "lora_alpha": 4, "use_dora": True}, "use_dora is not supported"),
        ({"r": 2, "lora_alpha": 4, "bias": "all"}, "trained biases are not supported"),
        ({"r": 2, "lora_alpha": 4, "peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        ({"r": 2, "lora_alpha": 4, "init_lora_weights": "pissa"}, "init_lora_weights 'pissa' also changes the base"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, config, message):
    layers = random_lora(rank=2)
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(tensors_of(layers, DIALECTS["diffusers"]), tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    assert message in refusal(tmp_path / "x.safetensors")
    folder = save_peft(tmp_path / "peft", layers)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match="adapter_config.json|adapter_model.safetensors"):
        read_lora(folder, MODULES)


def test_hostile_settings_are_refused_cheaply(tmp_path):
    tensors = tensors_of(random_lora(), DIALECTS["diffusers"])
    many = json.dumps({"r": 2, "lora_alpha": 4, "alpha_pattern": {f"x{i}": 1 for i in range(100_000)}})
    for text in (many, '{"a":' * 100_000, '{"r": 1, "r": 2}'):
        save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
        refusal(tmp_path / "x.safetensors")
    save_file({"transformer." * 20_000 + "lora_A.weight": zeros(2, 2)}, tmp_path / "x.safetensors")
    refusal(tmp_path / "x.safetensors")


def test_settings_of_other_parts_of_a_pipeline_are_not_those_of_the_transformer(tmp_path):
    config = {"text_encoder.r": 8, "text_encoder.lora_alpha": 1, "transformer.r": 2, "transformer.lora_alpha": 6}
    tensors = tensors_of(random_lora(rank=2), DIALECTS["diffusers"])
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    assert read_settings(tmp_path / "x.safetensors").alpha == 6
    assert read_lora(tmp_path / "x.safetensors", MODULES)[Q].factor == 3
