"""LoRA training: a pretrained model whose weights are frozen, and the adapters that are trained in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, TypeVar

from opensora.checkpoint.files import config_path
from opensora.checkpoint.lora.files import LORA_FOLDER, read_lora
from opensora.checkpoint.lora.settings import LoRASettings
from opensora.config.lora_training import LoRATrainOptions
from opensora.device import Device
from opensora.errors import UserError
from opensora.models.lora import (
    DropoutSeed,
    add_trainable,
    initial_adapters,
    linear_layers,
    linear_shapes,
    select_layers,
)
from opensora.models.pretrained import PretrainedModel
from opensora.utils.logs import logger

ModelT = TypeVar("ModelT", bound=PretrainedModel)


def load_frozen(
    model_class: type[ModelT], source: str, changes: Mapping[str, Any], options: LoRATrainOptions, device: Device
) -> ModelT:
    """The pretrained model at `source`, held as --weights says.

    Args:
        changes: keys of config.json that flags set.

    Raises:
        UserError: a flag contradicts the config.json: adapters belong to the model that they were trained on.
    """
    config = model_class.published_config(source, "--pretrained")
    for name, value in changes.items():
        if name in config and config[name] != value:
            flag = f"--{name} {value}"
            if value is None:
                flag = "--rf_scheduler" if name == "prediction_type" else f"training without --{name}"
            raise UserError(
                f"{flag} contradicts {config_path(source)}, whose {name} is {config[name]}: LoRA adapts the model as "
                f"it was trained; use --{name} {config[name]}"
            )
    model = model_class.from_pretrained(source, device.dtype, {**config, **changes}, weights=options.weights)
    if device.is_main:
        scales = [layer.scale for layer in linear_layers(model).values() if layer.scale is not None]
        size = sum(tensor.nbytes for tensor in (*model.get_parameters(), *scales))
        logger.info(f"{source}: {size / 1e9:.2f} GB of frozen weights")
    return model


def adapt(
    model: PretrainedModel, options: Optional[LoRATrainOptions], seed: int, checkpoint: Optional[Path]
) -> DropoutSeed:
    """Adds the adapters to a model, new ones or those of a checkpoint; see `add_trainable`. None: the model has none.

    Raises:
        UserError: a target names no linear layer, or the checkpoint has other adapters.
    """
    if options is None:
        return DropoutSeed()
    shapes = linear_shapes(model)
    layers = select_layers(shapes, target_modules(options, model))
    adapters = initial_adapters({name: shapes[name] for name in layers}, options.rank, options.alpha, seed)
    if checkpoint is not None:
        folder = checkpoint / LORA_FOLDER
        if not folder.is_dir():
            raise UserError(f"{checkpoint}: not a checkpoint of LoRA training: resume it without --lora_rank")
        saved = read_lora(folder, shapes)
        if {name: lora.rank for name, lora in saved.items()} != dict.fromkeys(layers, options.rank):
            raise UserError(
                f"{checkpoint}: has adapters of other layers or of another rank: resume with the same --lora_rank and "
                "--lora_target_modules"
            )
        adapters = {name: replace(adapters[name], a=saved[name].a, b=saved[name].b) for name in layers}
    return add_trainable(model, adapters, options.lora_dropout)


def target_modules(options: LoRATrainOptions, model: PretrainedModel) -> tuple[str, ...]:
    """The targets of the options, or the default ones of the model."""
    return options.targets or model.lora_targets


def lora_settings(options: Optional[LoRATrainOptions], model: PretrainedModel) -> Optional[LoRASettings]:
    """What the files of the adapters record; None if there are none."""
    if options is None:
        return None
    targets = target_modules(options, model)
    return LoRASettings(options.rank, options.alpha, options.lora_dropout, targets)
