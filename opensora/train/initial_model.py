"""The transformer that a training starts from: its class, its configuration and its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Optional

from opensora.checkpoint.files import find_weights, open_state, read_config
from opensora.checkpoint.lazy_tensor import summarize
from opensora.checkpoint.shape_check import check_class, published_class
from opensora.config.families import NOISE_SCHEDULE_KEYS, VAES
from opensora.device import Device
from opensora.errors import UserError
from opensora.models import OpenSoraT2V_v1_3
from opensora.models.dit.transformer import VideoTransformer
from opensora.train.lora import load_frozen
from opensora.train.recipes import RECIPES, Recipe, preset_recipe
from opensora.train.t2v_options import ObjectiveOptions, T2VFlags, T2VTrainOptions
from opensora.utils.logs import logger


def choose_recipe(options: T2VTrainOptions, classes: Sequence[str], checkpoint: Optional[Path]) -> Recipe:
    """The recipe of the model that the flags or the checkpoint name.

    Args:
        classes: names of the classes that the command trains. The first is that of a config.json which names none, or
            which names the text-to-video model that the inpaint model starts from.

    Raises:
        FileNotFoundError: no config.json.
        UserError: a model that the command does not train, or that takes no images beside videos.
    """
    recipe = preset_recipe(options.model)
    if recipe is None or checkpoint is not None:
        source, flag = _source(options, checkpoint)
        config = read_config(source)
        check_class(config, source, (*classes, OpenSoraT2V_v1_3.__name__), flag)
        kind = published_class(config)
        recipe = RECIPES[classes[0] if kind is None or kind not in classes else kind]
    elif recipe.model.__name__ not in classes:
        raise UserError(f"--model {options.model}: this command trains {classes[0]}")
    images = options.data.use_image_num
    if images and not recipe.takes_images:
        raise UserError(f"--use_image_num {images}: {recipe.model.__name__} has no images beside videos; use 0")
    return recipe


def build_model(
    recipe: Recipe, options: T2VTrainOptions, device: Device, checkpoint: Optional[Path]
) -> VideoTransformer:
    """The model that the flags select, with the weights of the checkpoint, pretrained or random ones.

    Raises:
        FileNotFoundError, UserError: missing or damaged files, or flags that contradict them.
    """
    changes = config_changes(recipe, options)
    if options.lora is not None:
        assert options.pretrained is not None, "T2VTrainOptions requires it"
        model = load_frozen(recipe.model, options.pretrained, changes, options.lora, device)
        for name, value in recipe.sizes(options.data).items():
            if recipe.one_length and name == "video_length" and getattr(model.config, name) != value:
                raise UserError(
                    f"--num_frames {options.data.num_frames} gives {value} latent frames, but {options.pretrained} has "
                    f"{name} {getattr(model.config, name)}: LoRA adapts the model as it was trained"
                )
        return model
    if checkpoint is not None:
        return _resumed(recipe, options, device, checkpoint, changes)
    source = options.pretrained
    if source is not None and device.is_main:
        _warn_of_other_objective(source, options.objective)
    if options.model is not None and options.model in recipe.presets:
        config = {**recipe.presets[options.model], **_weight_keys(recipe, source)}
    else:
        config = read_config(_source(options, None)[0])
    config = {**config, **recipe.sizes(options.data), **changes}
    _check_channels(recipe, config, options)
    if source is None:
        return recipe.model(**config).cast(device.dtype)
    if recipe.init_from is not None:
        return recipe.init_from(source, device.dtype, config)
    return _with_fitting_weights(recipe.model, source, config, device)


def config_changes(recipe: Recipe, options: T2VTrainOptions) -> dict[str, Any]:
    """The keys of config.json that flags set. Raises UserError for a flag that sets a key of another model."""
    known = {field.name for field in fields(recipe.model.config_class)}
    changes = {}
    for name, value in options.model_changes.items():
        if name in known:
            changes[name] = value
        elif value != getattr(T2VFlags, name, None):
            raise UserError(f"--{name} {value}: {recipe.model.__name__} has no {name}; leave it out")
    return changes


def _source(options: T2VTrainOptions, checkpoint: Optional[Path]) -> tuple[str, str]:
    """The folder whose config.json describes the model, and its flag."""
    if checkpoint is not None and options.lora is None:
        return str(checkpoint / "model"), "--resume_from_checkpoint"
    folder = options.model or options.pretrained
    assert folder is not None, "T2VTrainOptions requires one of the two"
    return folder, "--model" if options.model else "--pretrained"


def _weight_keys(recipe: Recipe, source: Optional[str]) -> dict[str, Any]:
    """The keys that belong to pretrained weights, from their config.json; published torch files have none."""
    if source is None or not recipe.weight_keys:
        return {}
    config = _config_if_any(source)
    if published_class(config) != recipe.model.__name__:
        return {}
    return {name: config.get(name) for name in recipe.weight_keys}


def _config_if_any(source: str) -> dict[str, Any]:
    """The config.json of weights; published torch files have none."""
    try:
        return read_config(source)
    except FileNotFoundError:
        return {}


def _warn_of_other_objective(source: str, objective: ObjectiveOptions) -> None:
    config = _config_if_any(source)
    for name, value in objective.model_keys().items():
        if config.get(name) not in (None, value):
            logger.warning(
                f"{source} was trained with {name} {config[name]}, this training has {name} {value}: give --{name} as "
                "in that training, unless the model is to learn another objective"
            )


def _check_channels(recipe: Recipe, config: Mapping[str, Any], options: T2VTrainOptions) -> None:
    needed, found = recipe.model.config_class.from_dict(config).in_channels, VAES[options.ae][0]
    if needed != found:
        raise UserError(
            f"--ae {options.ae} has {found} latent channels, but the transformer needs {needed}: give --ae and "
            "--ae_path of the autoencoder that it was made for"
        )


def _resumed(
    recipe: Recipe, options: T2VTrainOptions, device: Device, checkpoint: Path, changes: Mapping[str, Any]
) -> VideoTransformer:
    """The model of a checkpoint; flags that differ from its configuration are an error."""
    source = checkpoint / "model"
    config = read_config(source)
    for name, value in changes.items():
        if name in NOISE_SCHEDULE_KEYS and name not in config:
            continue  # checkpoints of earlier versions do not record it
        if config.get(name) != value:
            raise UserError(
                f"{checkpoint}: was trained with {name} {config.get(name)}, now it is {value}: resume "
                f"with the same flags, or start a new run with --pretrained {source}"
            )
    return recipe.model.from_pretrained(source, device.dtype, {**config, **changes, **recipe.sizes(options.data)})


def _with_fitting_weights(
    model_class: type[VideoTransformer], source: str, config: Mapping[str, Any], device: Device
) -> VideoTransformer:
    """A model with those pretrained weights that fit it; the others are random.

    Raises:
        UserError: no tensor belongs to the model, or one has another shape.
    """
    model = model_class(**config).cast(device.dtype)
    state = open_state(find_weights(source))
    try:
        missing, unexpected = model.load_torch_state(state, strict=False)
    except ValueError as error:
        raise UserError(
            f"{source}: {error}; name the folder of its config.json, or its preset, with --model"
        ) from error
    if len(missing) == len(model.own_parameters()):
        raise UserError(f"{source}: none of its {len(state)} tensors belongs to {model_class.__name__}")
    if device.is_main and (missing or unexpected):
        logger.warning(
            f"{source}: {summarize('missing', missing)}, which are initialized randomly; "
            f"{summarize('unexpected', unexpected)}, which are not used"
        )
    return model
