"""The networks of the metrics, loaded at first use."""

from __future__ import annotations

from functools import cached_property

from opensora.config.evaluation import EvaluateOptions
from opensora.metrics.clip_similarity import clip_tokenizer
from opensora.models.lpips import LPIPS
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vision.aesthetic import AestheticHead
from opensora.models.vision.clip import CLIPModel
from opensora.models.vision.dino import DINO
from opensora.models.vision.i3d import I3D

# The flags of the networks that metrics need.
NEEDS = {
    "lpips": ("lpips_path",),
    "fvd": ("i3d_path",),
    "clipsim": ("clip_path",),
    "clip_score": ("clip_path",),
    "background_consistency": ("clip_path",),
    "subject_consistency": ("dino_path",),
    "aesthetic_quality": ("clip_large_path", "aesthetic_path"),
}
# The attributes of `Networks` that metrics use.
LOADED = {
    "lpips": ("lpips",),
    "fvd": ("i3d",),
    "clipsim": ("clip", "tokenizer"),
    "clip_score": ("clip", "tokenizer"),
    "background_consistency": ("clip",),
    "subject_consistency": ("dino",),
    "aesthetic_quality": ("clip_large", "head"),
}


class Networks:
    """The networks that the flags name."""

    def __init__(self, options: EvaluateOptions):
        self.options = options

    @cached_property
    def lpips(self) -> LPIPS:
        return LPIPS.load(self.options.lpips_path, net="alex").set_train(False)

    @cached_property
    def i3d(self) -> I3D:
        return I3D.load(str(self.options.i3d_path)).set_train(False)

    @cached_property
    def clip(self) -> CLIPModel:
        return CLIPModel.load(str(self.options.clip_path)).set_train(False)

    @cached_property
    def clip_large(self) -> CLIPModel:
        return CLIPModel.load(str(self.options.clip_large_path)).set_train(False)

    @cached_property
    def head(self) -> AestheticHead:
        return AestheticHead.load(str(self.options.aesthetic_path)).set_train(False)

    @cached_property
    def dino(self) -> DINO:
        return DINO.load(str(self.options.dino_path)).set_train(False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return clip_tokenizer(str(self.options.clip_path))

    def load(self, metrics: tuple[str, ...]) -> None:
        """Loads what the metrics need, so that unusable files are reported before any video is read."""
        for metric in metrics:
            for network in LOADED.get(metric, ()):
                getattr(self, network)
