"""How the transformers of each class are trained, as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from opensora.config.families import PLAN, PLAN_INPAINT
from opensora.datasets.t2v.options import DROPPED, T2VDataOptions
from opensora.models import LatteT2V, OpenSoraInpaint_v1_3, OpenSoraT2V, OpenSoraT2V_v1_3
from opensora.models.dit import config as v1_3_config
from opensora.models.dit import v1_2
from opensora.models.dit.transformer import VideoTransformer
from opensora.models.latte import config as latte_config


class Recipe(NamedTuple):
    """How the models of a class are trained.

    Attributes:
        presets: the published configurations by name.
        sizes: the keys of config.json that depend on the size of the samples.
        learned_variance: the model predicts the variance of the noise, and is trained with the loss for it.
        takes_images: the model can be trained on images beside videos.
        one_length: all videos have `num_frames` frames, because the model has positions for no other number.
        weight_keys: keys of config.json that belong to the weights, whatever the preset says.
        dropped: the default probability of dropping a caption.
        init_from: (path, dtype, config) -> a model with pretrained weights, where these may be of another class.
    """

    model: type[VideoTransformer]
    presets: Mapping[str, Mapping[str, Any]]
    sizes: Callable[[T2VDataOptions], dict[str, Any]] = lambda data: {}
    learned_variance: bool = False
    takes_images: bool = False
    one_length: bool = False
    weight_keys: tuple[str, ...] = ()
    dropped: float = DROPPED
    init_from: Optional[Callable[..., VideoTransformer]] = None


def _latent_frames(data: T2VDataOptions) -> int:
    return (data.num_frames - 1) // data.ae_stride_t + 1


def _latent_size(data: T2VDataOptions) -> dict[str, Any]:
    if not data.force_resolution:
        return {}
    return {"sample_size": [data.max_height // data.ae_stride, data.max_width // data.ae_stride]}


def _v1_2_sizes(data: T2VDataOptions) -> dict[str, Any]:
    return {**_latent_size(data), "sample_size_t": _latent_frames(data)}


def _latte_sizes(data: T2VDataOptions) -> dict[str, Any]:
    """An image needs no positions in time: training on images keeps those of the videos."""
    frames = {"video_length": _latent_frames(data)} if data.num_frames > 1 else {}
    return {**_latent_size(data), **frames}


RECIPES = {
    recipe.model.__name__: recipe
    for recipe in (
        Recipe(OpenSoraT2V_v1_3, {PLAN: v1_3_config.PRESETS[PLAN]}),
        Recipe(
            OpenSoraInpaint_v1_3,
            {PLAN_INPAINT: v1_3_config.PRESETS[PLAN_INPAINT]},
            init_from=OpenSoraInpaint_v1_3.init_from,
        ),
        Recipe(OpenSoraT2V, v1_2.PRESETS, _v1_2_sizes, takes_images=True),
        Recipe(
            LatteT2V,
            latte_config.PRESETS,
            _latte_sizes,
            learned_variance=True,
            takes_images=True,
            one_length=True,
            weight_keys=("use_rope",),  # v1.0 and v1.1 count frames differently
            dropped=0.0,
        ),
    )
}


def preset_recipe(name: Optional[str]) -> Optional[Recipe]:
    """The recipe of a preset; None if there is no preset of this name."""
    return next((recipe for recipe in RECIPES.values() if name in recipe.presets), None)
