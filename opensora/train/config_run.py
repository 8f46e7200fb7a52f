"""Training from a config file, for both model families, with the project's one trainer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from mindspore import Tensor

from opensora.config.families import FAMILIES, PLAN, check_family
from opensora.config.fields import TrainingFields
from opensora.config.lora_training import LoRATrainOptions
from opensora.config.mmengine import PLACES, check_fields, field_names
from opensora.config.options import check_choice, from_mapping
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.device import Device
from opensora.errors import UserError
from opensora.parallel.process_group import World
from opensora.registry import DATASET, MODEL, SCHEDULER, TEXT_ENCODER, VAE, check_component, check_folders
from opensora.train.arguments import check_arguments, recorded
from opensora.train.checkpoint import load_state
from opensora.train.checkpoint_folder import checkpoints, find_checkpoint, find_corruption
from opensora.train.ema import EMA
from opensora.train.objective import ObjectiveOptions
from opensora.train.stdit import STDiTTraining, STDiTTrainOptions
from opensora.train.t2v import T2VTraining, T2VTrainOptions
from opensora.train.trainer import Trainer, TrainerOptions, Training
from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import exclusive_folder
from opensora.utils.logs import logger

NEEDED = ("model.type", "vae.type", "text_encoder.type", "scheduler.type", "dataset.type", "outputs", "lr")
# `plugin` -> ZeRO stage.
PLUGINS = {"ddp": 0, "zero1": 1, "zero2": 2, "zero2-seq": 2, "zero3": 3}
# Fields that have no effect on the training of Open-Sora-Plan's model, of the others, and of those of them without
# conditioning frames; with their accepted values.
UNREAD_BY_PLAN: dict[str, Any] = {"bucket_config": None, "mask_ratios": None, "validate": False}
UNREAD: dict[str, Any] = {"gradient_accumulation_steps": 1, "validate": False}
UNREAD_WITHOUT_FRAMES: dict[str, Any] = {"mask_ratios": None}
# Samplers of Open-Sora-Plan whose weights were trained with another objective.
OBJECTIVES = {"CogVideoX": {"cogvideox_scheduler": True}, "FlowMatchEulerDiscrete": {"rf_scheduler": True}}


def run(config: Mapping[str, Any], device: Device) -> None:
    """Trains from a config of `parse_configs`.

    Raises:
        UserError, OSError: an invalid config or file; before models are loaded, as far as possible.
    """
    check_fields(config, NEEDED)
    check_family(config, training=True)
    check_folders(config)
    if config.get("wandb") and find_spec("wandb") is None:
        raise UserError("wandb = True needs the package wandb: pip install wandb; curves are in tensorboard/ anyway")
    _check_unread(config)
    fields = training_fields(config)
    check_choice("plugin", fields.plugin, PLUGINS)
    make_options = plan_options if config["model"]["type"] == PLAN else stdit_options
    options = make_options(config, PLUGINS[fields.plugin])
    checkpoint = find_load(config.get("load"))
    world = World(device.rank, device.world_size)
    arguments = recorded(
        {
            **{name: config.get(name) for name in field_names(training=True) if name not in PLACES},
            "processes": world.size,
        }
    )
    if checkpoint is not None and not config.get("start_from_scratch"):
        check_arguments(checkpoint, arguments, fields.allow_changed_arguments, quiet=not device.is_main)
    training: Training
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
    """Raises UserError for fields that the config's model does not support, and for unknown fields of components."""
    model = config["model"]["type"]
    is_stdit = model != PLAN
    unread = UNREAD if is_stdit else UNREAD_BY_PLAN
    if is_stdit and not FAMILIES[model].conditioning_frames:
        unread = {**unread, **UNREAD_WITHOUT_FRAMES}
    for name, accepted in unread.items():
        if config.get(name) and config[name] != accepted:
            raise UserError(f"{name} {config[name]!r} has no effect on the training of {model}; leave it out")
    for kind in (VAE, TEXT_ENCODER, *((MODEL, SCHEDULER, DATASET) if is_stdit else ())):  # `plan_options` has the rest
        check_component(config[kind], kind)
    if is_stdit and config.get("bucket_config") and config.get("batch_size"):
        logger.warning(f"batch_size {config['batch_size']} has no effect: bucket_config contains the batch sizes")


def training_fields(config: Mapping[str, Any]) -> TrainingFields:
    """The fields of a training config; those that are None have their defaults."""
    return from_mapping(TrainingFields, _given(config))


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def stdit_options(config: Mapping[str, Any], zero_stage: int) -> STDiTTrainOptions:
    return from_mapping(
        STDiTTrainOptions, _given(config), zero_stage=zero_stage, lora=LoRATrainOptions.of(config), ema=_ema(config)
    )


def _ema(config: Mapping[str, Any]) -> Optional[float]:
    """The decay of the moving average. LoRA trains for few steps, in which an average moves little: it is optional."""
    if config.get("lora_rank") and config.get("ema_decay") is None:
        return None
    return training_fields(config).ema_decay


def plan_options(config: Mapping[str, Any], zero_stage: int) -> T2VTrainOptions:
    """The options of train_t2v_diffusers.py from a config. `dataset` has the fields of `T2VDataOptions`, `scheduler`
    those of `ObjectiveOptions`, `model` the keys of the model's config.json."""
    dataset, scheduler, model, vae, text_encoder = (
        dict(config[name]) for name in ("dataset", "scheduler", "model", "vae", "text_encoder")
    )
    check_fields(config, ("vae.from_pretrained", "text_encoder.from_pretrained"))
    fields = training_fields(config)
    length = text_encoder.get("model_max_length", 512)
    sampler = scheduler.pop("type")
    objective = from_mapping(ObjectiveOptions, {**OBJECTIVES.get(sampler, {}), **scheduler}, f"{sampler} in training")
    for name in ("type", "transform_name"):  # the second is a default of the other family
        dataset.pop(name, None)
    if "data_path" in dataset:  # --data-path
        dataset["data"] = dataset.pop("data_path")
    check_fields({"dataset": dataset, "config": config.get("config")}, ["dataset.data"])
    data = from_mapping(
        T2VDataOptions, {**dataset, "sp_size": fields.sp_size, "model_max_length": length}, "T2VDataset"
    )
    preset: Optional[str] = model.pop("type")
    pretrained = model.pop("from_pretrained", None)
    decay = _ema(config)
    if pretrained is not None and (Path(pretrained) / "config.json").is_file():
        preset = None  # the configuration of the weights is used
    return T2VTrainOptions(
        data=data,
        objective=objective,
        ae=vae["type"],
        ae_path=vae["from_pretrained"],
        enable_tiling=vae.get("enable_tiling", False),
        text_encoder_name_1=text_encoder["from_pretrained"],
        model=preset,
        pretrained=pretrained,
        model_changes={**model, **objective.model_keys()},
        train_batch_size=fields.batch_size or T2VTrainOptions.train_batch_size,
        gradient_accumulation_steps=fields.gradient_accumulation_steps,
        dataloader_num_workers=fields.num_workers,
        gradient_checkpointing=fields.grad_checkpoint,
        zero_stage=zero_stage,
        sp_size=fields.sp_size,
        max_grad_norm=fields.grad_clip,
        ema=None if decay is None else EMA(decay),
        lora=LoRATrainOptions.of(config),
        seed=fields.seed,
    )


def trainer_options(config: Mapping[str, Any], output_dir: Path, training: Training) -> TrainerOptions:
    """The options of the run: `max_train_steps`, or `epochs` times the steps of the first epoch."""
    fields = training_fields(config)
    steps = fields.max_train_steps
    if steps is None:
        steps = len(training.loader.sampler) * fields.epochs
    return TrainerOptions(
        str(output_dir),
        max_train_steps=steps,
        start_learning_rate=fields.lr,
        checkpointing_steps=fields.ckpt_every if fields.ckpt_every > 0 else sys.maxsize,
        log_interval=fields.log_every or TrainingFields.log_every,
        allow_changed_arguments=fields.allow_changed_arguments,
    )


def find_load(load: Optional[str]) -> Optional[Path]:
    """The checkpoint at `load`: that folder itself, or the newest intact one in that folder of a run.

    Raises:
        FileNotFoundError: no such folder.
        UserError: it is corrupt, or not a checkpoint.
    """
    if load is None:
        return None
    if not Path(load).is_dir():
        raise FileNotFoundError(f"load {load}: no such folder")
    if checkpoints(load):
        return find_checkpoint(load, "latest")
    reason = find_corruption(Path(load))
    if reason:
        raise UserError(f"load {load}: neither an intact checkpoint nor a folder of checkpoints: {reason}")
    return Path(load)


def new_folder(outputs: str, model: str, world: World) -> Path:
    """Creates outputs/NNN-MODEL, numbered consecutively. The first process chooses for all: they may see different
    folders."""
    number, model = 0, model.replace("/", "-")
    if world.rank == 0:
        Path(outputs).mkdir(parents=True, exist_ok=True)
        present = [path.name for path in Path(outputs).iterdir()]
        number = len(present)
        while any(name.startswith(f"{number:03d}-") for name in present):  # others were removed
            number += 1
        while True:
            try:
                (Path(outputs) / f"{number:03d}-{model}").mkdir()
                break
            except FileExistsError:  # another run started at the same time
                number += 1
    number = int(world.all_reduce(Tensor([float(number)])).asnumpy()[0])
    return Path(outputs) / f"{number:03d}-{model}"


def start_records(output_dir: Path, config: Mapping[str, Any]) -> None:
    """Writes the config into the folder; with `wandb`, the curves are also sent to wandb."""
    with atomic_write(output_dir / "config.txt") as temporary:
        temporary.write_text(json.dumps(config, indent=4, default=str), encoding="utf-8")
    if config.get("wandb"):
        import wandb

        wandb.init(
            project="opensora", name=output_dir.name, dir=str(output_dir), config=dict(config), sync_tensorboard=True
        )
