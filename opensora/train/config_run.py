"""Training by a config file, of both families, on the project's one trainer."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from mindspore import Tensor

from opensora.config.mmengine import PLACES, check_fields, field_names
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.device import Device
from opensora.errors import UserError
from opensora.models.vaes import VAES
from opensora.parallel.process_group import World
from opensora.registry import DATASET, MODEL, SCHEDULER, TEXT_ENCODER, VAE, check_family, check_folders, check_part
from opensora.schedulers import SCHEDULERS
from opensora.train.adamw import AdamW
from opensora.train.arguments import check_arguments, recorded
from opensora.train.checkpoint import checkpoints, damage, find_checkpoint, load_state
from opensora.train.ema import EMA
from opensora.train.objective import ObjectiveOptions
from opensora.train.stdit import STDiTTraining, STDiTTrainOptions
from opensora.train.t2v import T2VTraining, T2VTrainOptions
from opensora.train.trainer import Trainer, TrainerOptions, Training
from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import exclusive_folder
from opensora.utils.logs import logger

STDIT, PLAN = "STDiT2-XL/2", "OpenSoraT2V_v1_3-2B/122"
FAMILIES = {
    STDIT: {
        VAE: ("VideoAutoencoderKL",),
        TEXT_ENCODER: ("t5", "mt5"),
        SCHEDULER: ("iddpm", "iddpm-speed"),
        DATASET: ("VariableVideoTextDataset", "VideoTextDataset"),
    },
    PLAN: {VAE: tuple(VAES), TEXT_ENCODER: ("mt5", "t5"), SCHEDULER: tuple(SCHEDULERS), DATASET: ("T2VDataset",)},
}
NEEDED = ("model.type", "vae.type", "text_encoder.type", "scheduler.type", "dataset.type", "outputs", "lr")
# `plugin` -> what ZeRO divides over the processes.
PLUGINS = {"ddp": 0, "zero1": 1, "zero2": 2, "zero2-seq": 2, "zero3": 3}
# Fields that have no effect on the training of a model, and the values that ask for none.
UNREAD = {
    STDIT: {"gradient_accumulation_steps": 1, "validate": False},
    PLAN: {"bucket_config": None, "mask_ratios": None, "validate": False},
}
# Samplers of Open-Sora-Plan whose weights were trained in a way of their own.
OBJECTIVES = {"CogVideoX": {"cogvideox_scheduler": True}, "FlowMatchEulerDiscrete": {"rf_scheduler": True}}


def run(config: Mapping[str, Any], device: Device) -> None:
    """Trains as a config of `parse_configs` says.

    Raises:
        UserError, OSError: what is wrong with the config or its files, before models are loaded where that is known.
    """
    check_fields(config, NEEDED)
    check_family(config, FAMILIES)
    check_folders(config)
    if config.get("wandb") and find_spec("wandb") is None:
        raise UserError("wandb = True needs the package wandb: pip install wandb; curves are in tensorboard/ anyway")
    _check_unread(config)
    plugin = config.get("plugin") or "ddp"
    if plugin not in PLUGINS:
        raise UserError(f"plugin {plugin!r} is not one of {', '.join(PLUGINS)}")
    make_options = stdit_options if config["model"]["type"] == STDIT else plan_options
    options = make_options(config, PLUGINS[plugin])
    checkpoint = find_load(config.get("load"))
    world = World(device.rank, device.world_size)
    arguments = recorded(
        {
            **{name: config.get(name) for name in field_names(training=True) if name not in PLACES},
            "processes": world.size,
        }
    )
    if checkpoint is not None and not config.get("start_from_scratch"):
        check_arguments(checkpoint, arguments, config.get("allow_changed_arguments", False), quiet=not device.is_main)
    if isinstance(options, STDiTTrainOptions):
        training = STDiTTraining(options, config, device, world, checkpoint)
    else:
        training = T2VTraining(options, device, world, checkpoint)
    output_dir = new_folder(config["outputs"], config["model"]["type"], world)
    with exclusive_folder(output_dir, device.is_main):
        if device.is_main:
            start_records(output_dir, config)
        if checkpoint is not None and config.get("start_from_scratch"):
            load_state(checkpoint, training.trained, quiet=not device.is_main)
            checkpoint = None
        Trainer(training, trainer_options(config, output_dir, training), device, checkpoint, arguments).run()


def _check_unread(config: Mapping[str, Any]) -> None:
    """Raises UserError for fields that the config's model cannot follow, and for unknown fields of its parts."""
    is_stdit, model = config["model"]["type"] == STDIT, config["model"]["type"]
    for name, nothing in UNREAD[model].items():
        if config.get(name) and config[name] != nothing:
            raise UserError(f"{name} {config[name]!r} has no effect on the training of {model}; leave it out")
    for kind in (VAE, TEXT_ENCODER, *((MODEL, SCHEDULER, DATASET) if is_stdit else ())):  # `plan_options` has the rest
        check_part(config[kind], kind)
    if is_stdit and config.get("bucket_config") and config.get("batch_size"):
        logger.warning(f"batch_size {config['batch_size']} has no effect: bucket_config has the sizes of batches")


def stdit_options(config: Mapping[str, Any], zero_stage: int) -> STDiTTrainOptions:
    values = {
        field.name: config[field.name] for field in fields(STDiTTrainOptions) if config.get(field.name) is not None
    }
    return STDiTTrainOptions(**{**values, "grad_clip": config.get("grad_clip"), "zero_stage": zero_stage})


def plan_options(config: Mapping[str, Any], zero_stage: int) -> T2VTrainOptions:
    """The options of train_t2v_diffusers.py, from a config. `dataset` has the fields of `T2VDataOptions`, `scheduler`
    those of `ObjectiveOptions`, `model` keys of the model's config.json."""
    dataset, scheduler, model, vae, text_encoder = (
        dict(config[name]) for name in ("dataset", "scheduler", "model", "vae", "text_encoder")
    )
    check_fields(config, ("vae.from_pretrained", "text_encoder.from_pretrained"))
    sp_size = config.get("sp_size") or 1
    length = text_encoder.get("model_max_length", 512)
    sampler = scheduler.pop("type")
    objective = fill(ObjectiveOptions, {**OBJECTIVES.get(sampler, {}), **scheduler}, f"{sampler} in training")
    for name in ("type", "transform_name"):  # the second is a default of the other family
        dataset.pop(name, None)
    if "data_path" in dataset:  # --data-path
        dataset["data"] = dataset.pop("data_path")
    check_fields({"dataset": dataset, "config": config.get("config")}, ["dataset.data"])
    data = fill(T2VDataOptions, {**dataset, "sp_size": sp_size, "model_max_length": length}, "T2VDataset")
    name, pretrained = model.pop("type"), model.pop("from_pretrained", None)
    if pretrained is not None and (Path(pretrained) / "config.json").is_file():
        name = None  # the weights' own configuration counts
    return T2VTrainOptions(
        data=data,
        objective=objective,
        ae=vae["type"],
        ae_path=vae["from_pretrained"],
        enable_tiling=vae.get("enable_tiling", False),
        text_encoder_name_1=text_encoder["from_pretrained"],
        model=name,
        pretrained=pretrained,
        model_changes={**model, "prediction_type": None if objective.rf_scheduler else objective.prediction_type},
        train_batch_size=config.get("batch_size") or 1,
        gradient_accumulation_steps=config.get("gradient_accumulation_steps") or 1,
        dataloader_num_workers=config.get("num_workers", 4),
        gradient_checkpointing=config.get("grad_checkpoint", False),
        zero_stage=zero_stage,
        sp_size=sp_size,
        max_grad_norm=config.get("grad_clip"),
        adamw=AdamW(),
        ema=EMA(config.get("ema_decay", 0.9999)),
        seed=config.get("seed", 42),
    )


def fill(options: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass with these fields; ValueError, with the names there are, for one that it has not."""
    known = [field.name for field in fields(options)]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"{where} has no field {name!r}{hint}; its fields are {', '.join(known)}")
    return options(**values)


def trainer_options(config: Mapping[str, Any], output_dir: Path, training: Training) -> TrainerOptions:
    """Ends after `max_train_steps`, or after `epochs` as long as the first."""
    steps = config.get("max_train_steps")
    if steps is None:
        sampler = training.loader.sampler
        steps = len(sampler) * config.get("epochs", 1000)
    every = config.get("ckpt_every") or 0
    return TrainerOptions(
        str(output_dir),
        max_train_steps=steps,
        start_learning_rate=config["lr"],
        checkpointing_steps=every if every > 0 else sys.maxsize,
        log_interval=config.get("log_every") or 10,
        allow_changed_arguments=config.get("allow_changed_arguments", False),
    )


def find_load(load: Optional[str]) -> Optional[Path]:
    """The sound checkpoint that `load` means: itself, or the newest in that folder of a run.

    Raises:
        FileNotFoundError: no such folder.
        UserError: it is damaged, or no checkpoint.
    """
    if load is None:
        return None
    if not Path(load).is_dir():
        raise FileNotFoundError(f"load {load}: no such folder")
    if checkpoints(load):
        return find_checkpoint(load, "latest")
    reason = damage(Path(load))
    if reason:
        raise UserError(f"load {load}: no sound checkpoint, nor a folder of such: {reason}")
    return Path(load)


def new_folder(outputs: str, model: str, world: World) -> Path:
    """Makes outputs/NNN-MODEL, numbered consecutively. The first process decides for all: they may see different
    folders."""
    number, model = 0, model.replace("/", "-")
    if world.rank == 0:
        Path(outputs).mkdir(parents=True, exist_ok=True)
        present = [path.name for path in Path(outputs).iterdir()]
        number = len(present)
        while any(name.startswith(f"{number:03d}-") for name in present):  # where others were removed
            number += 1
        while True:
            try:
                (Path(outputs) / f"{number:03d}-{model}").mkdir()
                break
            except FileExistsError:  # of a run that starts at the same time
                number += 1
    number = int(world.sum(Tensor([float(number)])).asnumpy()[0])
    return Path(outputs) / f"{number:03d}-{model}"


def start_records(output_dir: Path, config: Mapping[str, Any]) -> None:
    """Writes the config into the folder; with `wandb` the curves are copied there, too."""
    with atomic_write(output_dir / "config.txt") as temporary:
        temporary.write_text(json.dumps(config, indent=4, default=str), encoding="utf-8")
    if config.get("wandb"):
        import wandb

        wandb.init(
            project="opensora", name=output_dir.name, dir=str(output_dir), config=dict(config), sync_tensorboard=True
        )
