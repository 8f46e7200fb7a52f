"""Networks and inputs of the golden cases of evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from golden_cases import case, given, normal, weight

from opensora.doctor.tiny_release import write_text_encoder
from opensora.models.vision.clip import CLIPModel

EVAL_CASES = "eval_cases.json"
VBENCH_CLIP = "eval_vbench_clip_e2e"


def with_golden_weights(model, name: str, description: dict):
    """The model with weights from their torch names, as the `constants` and `scale` of the description change them."""
    state = {key: _weight(name, key, value.shape, description) for key, value in model.torch_state().items()}
    model.load_torch_state(state)
    return model.set_train(False)


def build_network(cls, name: str):
    """The network `cls` of a case."""
    description = case(name, EVAL_CASES)
    return with_golden_weights(cls(**description.get("config", {})), name, description)


def write_clip(folder: Path) -> None:
    """A small CLIP in the layout of transformers, with a tokenizer of bytes."""
    description = case(VBENCH_CLIP, EVAL_CASES)
    config = {**description["config"], "text_config": {**description["config"]["text_config"], "vocab_size": 300}}
    with_golden_weights(CLIPModel(**config), VBENCH_CLIP, description).save_pretrained(folder)
    write_text_encoder(folder / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / "text" / name, folder)
    shutil.rmtree(folder / "text")


def openai_state(name: str) -> dict[str, np.ndarray]:
    """The weights of a case by OpenAI's names."""
    description = case(name, EVAL_CASES)
    return {key: _weight(name, key, shape, description) for key, shape in description["state_dict"].items()}


def _weight(name: str, key: str, shape, description: dict) -> np.ndarray:
    for suffix, value in description.get("constants", {}).items():
        if key.endswith(suffix):
            return np.full(shape, value, np.float32)
    if key.endswith("running_var"):
        return (1 + 0.1 * normal(name, "w", key, shape) ** 2).astype(np.float32)
    factor = next((f for suffix, f in description.get("scale", {}).items() if key.endswith(suffix)), 1)
    return weight(name, key, shape) * np.float32(factor)


def golden_frames(name: str, shape, scene: str = "scene", motion: str = "motion") -> np.ndarray:
    """uint8 videos (V, T, H, W, 3)."""
    v, _, h, w, _ = shape
    values = np.float32(128) + np.float32(48) * given(name, scene, (v, 1, h, w, 3))
    values = values + np.float32(24) * given(name, motion, shape)
    return np.floor(np.clip(values, 0, 255)).astype(np.uint8)


def case_frames(name: str) -> np.ndarray:
    """The uint8 videos (V, T, H, W, 3) of a case."""
    return golden_frames(name, case(name, EVAL_CASES)["inputs"]["frames"]["shape"])
