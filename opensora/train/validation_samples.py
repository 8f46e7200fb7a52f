"""Videos sampled from held-out captions during training, compared with the held-out videos."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Callable, Optional

import numpy as np
from mindspore import Tensor

from opensora.config.families import V1_5_BETAS
from opensora.config.generations import Generation
from opensora.datasets.collate import stack
from opensora.datasets.media.images import draw_grid, evenly_spaced
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.transforms import to_uint8
from opensora.errors import UserError
from opensora.metrics.clip_similarity import clip_tokenizer, clipsim, token_ids
from opensora.metrics.frechet import FeatureStatistics, frechet_distance
from opensora.metrics.video_distance import LEAST_FRAMES, fvd_features
from opensora.models.vision.clip import CLIPModel
from opensora.models.vision.i3d import I3D
from opensora.parallel.groups import Group, shard_list
from opensora.parallel.process_group import World
from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.denoise import DenoiseSettings
from opensora.pipelines.published import make_scheduler
from opensora.schedulers import Scheduler
from opensora.train.t2v_options import ObjectiveOptions
from opensora.train.validation_options import ValidationSampleOptions

PURPOSE = 2  # of the noise, a component of its seed (see `opensora.train.t2v`)
SHOWN_VIDEOS, SHOWN_FRAMES = 4, 8  # in the image for TensorBoard


class ValidationSamples:
    """The first `val_samples` held-out videos of the most common size, and the networks that measure samples.

    Raises:
        FileNotFoundError, UserError: unusable networks; videos too short for FVD.
    """

    def __init__(self, options: ValidationSampleOptions, dataset: T2VDataset, group: Group, world: World, seed: int):
        self.options, self.dataset, self.group, self.world, self.seed = options, dataset, group, world, seed
        self.numbers = [int(number) for number in most_common_shape(dataset)[: options.val_samples]]
        self.shape = dataset.shape(self.numbers[0])
        self.i3d = self.clip = None
        if options.i3d_path is not None:
            if self.shape.frames < LEAST_FRAMES:
                raise UserError(
                    f"--i3d_path: FVD needs {LEAST_FRAMES} frames at least, and most held-out videos have "
                    f"{self.shape.frames}: leave it out, or use a larger --num_frames"
                )
            self.i3d = I3D.load(options.i3d_path).set_train(False)
        if options.clip_path is not None:
            self.clip = CLIPModel.load(options.clip_path).set_train(False)
            self.clip_tokenizer = clip_tokenizer(options.clip_path)

    def measure(
        self, pipeline: OpenSoraPipeline, condition: Callable[..., Optional[Tensor]]
    ) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        """Samples with the current weights. The noise is the same every time.

        Args:
            pipeline: of the training's models.
            condition: (batch of one sample, generators) -> the conditioning channels of the transformer, or None.

        Returns:
            Metrics over the samples of all processes, and an image of the first samples.
        """
        options, height, width = self.options, self.shape.height, self.shape.width
        guidance = pipeline.default("guidance_scale", options.val_guidance_scale)
        features = np.zeros((len(self.numbers), self.i3d.config.num_classes if self.i3d else 0), np.float32)
        similarity = np.zeros(len(self.numbers), np.float32)
        times = evenly_spaced(self.shape.frames, SHOWN_FRAMES)
        shown = np.zeros((min(SHOWN_VIDEOS, len(self.numbers)), len(times), height, width, 3), np.float32)
        mine = shard_list(range(len(self.numbers)), self.group, self.world.size > 1)
        captions = [self.dataset.caption(self.numbers[position]) for position, _ in mine]
        texts = pipeline.embed_prompts(captions, guidance, self.dataset.options.model_max_length)
        settings = DenoiseSettings(compiles=False)
        for (position, keep), caption, text in zip(mine, captions, texts):
            generators = [np.random.default_rng([self.seed, PURPOSE, position])]
            batch = stack([self.dataset.frames(self.numbers[position], generators[0])])
            latents = pipeline.denoise(
                text,
                *self.shape,
                options.val_num_sampling_steps,
                guidance,
                [self.seed, PURPOSE, position],
                progress=False,
                conditioning=condition(batch, generators),
                settings=settings,
            )
            (video,) = pipeline.output(latents, "frames")
            if not (keep and self.group.is_first):
                continue
            if position < len(shown):
                shown[position] = video[times]
            if self.i3d is not None:
                features[position] = fvd_features(video, self.i3d, options.fvd_protocol)
            if self.clip is not None:
                ids = token_ids(caption, self.clip_tokenizer, self.clip)
                similarity[position] = clipsim([video], ids, self.clip)[0]
        metrics = {}
        if self.i3d is not None:
            metrics["fvd"] = frechet_distance(self.real_features, FeatureStatistics.of(self._sum(features)))
        if self.clip is not None:
            metrics["clipsim"] = float(self._sum(similarity).mean())
        return metrics, {"samples": draw_grid(list(self._sum(shown).astype(np.uint8)))}

    @cached_property
    def real_features(self) -> FeatureStatistics:
        """The statistics of I3D's features of the held-out videos."""
        assert self.i3d is not None, "only FVD needs them"
        generator = np.random.default_rng([self.seed, PURPOSE])
        videos = (self.dataset.frames(number, generator)["pixels"] for number in self.numbers)
        return FeatureStatistics.of(
            fvd_features(to_uint8(pixels.transpose(1, 2, 3, 0), "half_even"), self.i3d, self.options.fvd_protocol)
            for pixels in videos
        )

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The values of all processes; those of other processes' samples are zero."""
        return self.world.all_reduce(Tensor(values)).asnumpy()


def most_common_shape(dataset: T2VDataset) -> np.ndarray:
    """The numbers of the samples of the shape that most of the dataset's samples have, videos before images."""
    index = dataset.index
    counts = [(shape.frames > 1, count) for shape, count in zip(index.shapes, index.shape_counts)]
    return np.flatnonzero(index.shape_of == counts.index(max(counts)))


def sampling_scheduler(
    options: ValidationSampleOptions, objective: ObjectiveOptions, generation: Generation
) -> Scheduler:
    """The sampler for a model that is trained with this objective."""
    default = generation.settings_for(is_image=False)["sample_method"]
    if objective.rf_scheduler or objective.cogvideox_scheduler:
        default = "FlowMatchEulerDiscrete" if objective.rf_scheduler else "CogVideoX"
    return make_scheduler(
        generation,
        options.val_sample_method or default,
        prediction_type=objective.prediction_type,
        rescale_betas_zero_snr=objective.rescale_betas_zero_snr,
        **(V1_5_BETAS if objective.v1_5_scheduler else {}),
    )
