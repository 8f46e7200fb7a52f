"""Config files and tiny models for the types of Open-Sora v1.0, whose files are as published: torch files alone."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from torch_files import as_tensors, save_zip
from workflow_configs import components, write_config

from opensora.models import CLIPTextModel, DiT, Latte, PixArt, PixArtMS, STDiT
from opensora.models.pretrained import PretrainedModel

SIZE = dict(depth=2, hidden_size=48, num_heads=4)
CLASSES = 5
CLIP = dict(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=24,
    eos_token_id=1,
)


class Workflow(NamedTuple):
    """A model type with its tiny weights, `wrapper` the key of its file that holds them, and what goes with it."""

    type: str
    model: type[PretrainedModel]
    text_encoder: str = "t5"
    wrapper: str = ""
    fields: dict[str, Any] = {}
    scheduler: str = "iddpm"


LABELS = dict(condition=f"label_{CLASSES}")
WORKFLOWS = {
    "stdit": Workflow("STDiT-XL/2", STDiT, fields=dict(space_scale=0.5, enable_flashattn=True)),
    "stdit_2x2": Workflow("STDiT-XL/2x2", STDiT, fields=dict(patch_size=(2, 2, 2))),
    "pixart": Workflow("PixArt-XL/2", PixArt, wrapper="state_dict", scheduler="dpm-solver"),
    "pixart_ms": Workflow("PixArtMS-XL/2", PixArtMS, wrapper="state_dict", scheduler="dpm-solver"),
    "dit": Workflow("DiT-XL/2", DiT, "clip", fields=dict(condition="text"), scheduler="dpm-solver"),
    "dit_classes": Workflow("DiT-XL/2", DiT, "classes", fields=LABELS, scheduler="dpm-solver"),
    "latte": Workflow("Latte-XL/2", Latte, "clip", "ema", scheduler="dpm-solver"),
    "latte_classes": Workflow("Latte-XL/2", Latte, "classes", "ema", LABELS, "dpm-solver"),
}


def write_v1_0_files(folder: Path) -> None:
    """Adds the models of Open-Sora v1.0, CLIP and tables of data to the files of `write_workflow_files`."""
    ms.set_seed(5)
    CLIPTextModel(**CLIP).save_pretrained(folder / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "release/text" / name, folder / "clip")
    for name, workflow in WORKFLOWS.items():
        save_starting_weights(folder / f"{name}.pth", workflow)
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([folder / f"{i}.mp4", f"A square, {i}."] for i in range(8))
    with open(folder / "classes.csv", "w", newline="") as file:
        csv.writer(file).writerows([folder / f"{i}.mp4", i % CLASSES] for i in range(8))


def save_starting_weights(path: Path, workflow: Workflow) -> None:
    """Random weights as image models publish them: patches without a time axis, and other position embeddings."""
    width = 32 if workflow.text_encoder == "t5" else CLIP["hidden_size"]
    model = workflow.model.without_weights(
        **SIZE, **workflow.fields, input_size=(2, 4, 4), caption_channels=width, model_max_length=24
    )
    random = np.random.RandomState(6)
    state = {
        name: (0.1 * random.standard_normal(parameter.shape)).astype(np.float32)
        for name, parameter in model.parameters_and_names()
    }
    patches = state["x_embedder.proj.weight"]
    if patches.shape[2] == 1:
        state["x_embedder.proj.weight"] = patches[:, :, 0]
    state["pos_embed"] = np.full((1, 9, 48), 7, np.float32)
    state["temp_embed" if workflow.wrapper == "ema" else "pos_embed_temporal"] = np.full((1, 3, 48), 7, np.float32)
    tensors = as_tensors(state)
    save_zip(path, {workflow.wrapper: tensors} if workflow.wrapper else tensors)


def v1_0_components(folder: Path, name: str) -> dict:
    workflow = WORKFLOWS[name]
    encoders = {
        "t5": dict(type="t5", from_pretrained=str(folder / "release/text"), model_max_length=24),
        "clip": dict(type="clip", from_pretrained=str(folder / "clip"), model_max_length=20),
        "classes": dict(type="classes", num_classes=CLASSES, model_max_length=77),
    }
    model = dict(type=workflow.type, from_pretrained=str(folder / f"{name}.pth"), **SIZE, **workflow.fields)
    return {**components(folder), "model": model, "text_encoder": encoders[workflow.text_encoder]}


def v1_0_inference(folder: Path, path: Path, name: str, **changes) -> Path:
    workflow = WORKFLOWS[name]
    guided = dict(cfg_channel=3) if workflow.scheduler == "iddpm" else {}
    prompts = ["0", "3", "4"] if workflow.text_encoder == "classes" else ["A car.", "A dog.", "A tree."]
    fields = {
        **v1_0_components(folder, name),
        "scheduler": dict(type=workflow.scheduler, num_sampling_steps=2, cfg_scale=4.0, **guided),
        "num_frames": 4,
        "fps": 8,
        "image_size": (32, 32),
        "prompt": prompts,
        "batch_size": 2,
        "seed": 42,
        "save_dir": str(path.parent / "samples"),
    }
    return write_config(path, **{**fields, **changes})


def v1_0_training(folder: Path, path: Path, name: str, **changes) -> Path:
    table = "classes.csv" if WORKFLOWS[name].text_encoder == "classes" else "captions.csv"
    fields = {
        **v1_0_components(folder, name),
        "scheduler": dict(type="iddpm", timestep_respacing=""),
        "dataset": dict(
            type="VideoTextDataset",
            data_path=str(folder / table),
            num_frames=2,
            frame_interval=2,
            image_size=(32, 32),
            cache_dir=str(folder / "cache"),
        ),
        "batch_size": 4,
        "num_workers": 1,
        "seed": 42,
        "outputs": str(path.parent / "outputs"),
        "log_every": 1,
        "lr": 2e-3,
        "grad_clip": 1.0,
    }
    return write_config(path, **{**fields, **changes})
