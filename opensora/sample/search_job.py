"""A run of search_steps.py: the timesteps whose result is nearest to that of a long run.

The long run and all candidates start from the same noise and follow the probability-flow ODE, so that their latents
differ only by the error of the steps. The ancestral samplers and DDPM also add noise. The noise of a trajectory depends
on the number of its steps, and its differences would hide those of the timesteps. For these samplers the search follows
the ODE of the same marginal distributions (`WITHOUT_NOISE`; Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations", section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from opensora.checkpoint.files import read_config
from opensora.device import Device
from opensora.errors import UserError
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.parallel.groups import video_groups
from opensora.pipelines.denoise import DenoiseSettings, denoise
from opensora.pipelines.text import TextEmbedding
from opensora.sample.job import build_pipeline, encode_condition, frame_size, noise_seed, texts_to_embed
from opensora.sample.memory import plan_run
from opensora.sample.options import SampleOptions
from opensora.sample.outputs import Sample, plan_samples
from opensora.sample.prompt_files import read_inputs
from opensora.sample.search_options import SearchOptions
from opensora.sample.timestep_search import Choice, Timesteps, first_choices, first_move, improve
from opensora.sample.timesteps_file import SETTINGS, TimestepsFile, read_timesteps, write_timesteps
from opensora.schedulers import Scheduler, get_scheduler

WITHOUT_NOISE = {"EulerAncestralDiscrete": "EulerDiscrete", "DDPM": "DDIM", "KDPM2AncestralDiscrete": "HeunDiscrete"}
# Options that may change when a search is continued.
FREE_OPTIONS = ("output", "steps", "text_prompt", "memory", "weights", "text_encoder_device", *SETTINGS)


class ReusedOutputs:
    """A transformer that computes no call of a trajectory twice.

    Without sampled noise, the input of a call depends only on the timesteps up to that call. Timesteps that differ from
    the kept ones in the last of them therefore need one call.
    """

    def __init__(self, transformer: Any):
        self.transformer = transformer
        self.outputs: dict[tuple, Tensor] = {}  # by the timesteps up to the call
        self.timesteps: tuple = ()
        self.calls = 0

    def start(self, timesteps: Sequence[float]) -> None:
        """Begins a trajectory with these timesteps of its calls."""
        self.timesteps, self.calls = tuple(timesteps), 0

    def keep(self, timesteps: Iterable[float]) -> None:
        """Forgets the outputs of all other trajectories."""
        kept = tuple(timesteps)
        self.outputs = {key: output for key, output in self.outputs.items() if key == kept[: len(key)]}

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        self.calls += 1
        key = self.timesteps[: self.calls]
        if key not in self.outputs:
            self.outputs[key] = self.transformer(*inputs, **named)
        return self.outputs[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)


@dataclass
class Trajectories:
    """The samples of a search: their inputs, and the results of their long runs."""

    transformer: Any
    scheduler: Scheduler
    guidance_scale: float
    settings: DenoiseSettings
    texts: Sequence[TextEmbedding]
    noises: Sequence[np.ndarray]
    conditioning: Sequence[Optional[Tensor]]
    long_steps: int

    def __post_init__(self) -> None:
        self.models = [ReusedOutputs(self.transformer) for _ in self.texts]
        self._kept: np.ndarray = np.zeros(0)
        self.targets = []
        for sample in tqdm(range(len(self.texts)), "long runs", leave=False, unit="sample"):
            self.targets.append(self._latents(sample))
            self.models[sample].keep(())

    def error(self, timesteps: Timesteps, limit: float = math.inf) -> float:
        """The mean over samples of |x - x'| / |x'|, x' from the long run; infinite once it is sure to exceed the limit.

        The outputs for timesteps below the limit are kept, and reused for timesteps that begin with the same ones.
        """
        total, count = 0.0, len(self.targets)
        for sample, target in enumerate(self.targets):
            total += float(np.linalg.norm(self._latents(sample, timesteps) - target) / np.linalg.norm(target))
            if total > limit * count:
                break
        if total < limit * count:
            self._kept = self.scheduler.timesteps
        for model in self.models:
            model.keep(self._kept)
        return total / count if total <= limit * count else math.inf

    def _latents(self, sample: int, timesteps: Optional[Timesteps] = None) -> np.ndarray:
        """The result of a sample with these timesteps; None: of its long run."""
        model, scheduler = self.models[sample], self.scheduler
        scheduler.set_timesteps(self.long_steps if timesteps is None else None, timesteps)
        model.start(scheduler.timesteps.tolist())
        result = denoise(
            model,
            scheduler,
            self.texts[sample],
            Tensor(self.noises[sample]),
            self.long_steps,
            self.guidance_scale,
            None,
            self.conditioning[sample],
            progress=False,
            settings=self.settings,
            timesteps=timesteps,
        )
        return result.latents.asnumpy().astype(np.float64)


def search_timesteps(search: SearchOptions, options: SampleOptions, device: Device) -> None:
    """Writes the best timesteps so far whenever they improve, and continues an interrupted search from its file.

    Args:
        options: those of the same flags for sample.py.

    Raises:
        UserError: the sampler takes no timesteps, or the file is of another search; unusable prompts or files.
    """
    if device.world_size > 1:
        raise UserError("search_steps.py runs in one process, without msrun")
    method = WITHOUT_NOISE.get(options.sample_method, options.sample_method)
    scheduler = get_scheduler(method, **options.scheduler_arguments())
    scheduler.set_timesteps(search.steps)
    lowest = int(scheduler.timestep_range[0])
    spacings = first_choices(np.unique(scheduler.timesteps)[::-1], lowest)
    scheduler.set_timesteps(timesteps=spacings["uniform"])  # refuses before models are loaded
    samples = plan_samples(options, read_inputs(options))
    searched = {
        "sampler": method,
        "prompts": [sample.prompt for sample in samples],
        "conditions": [list(sample.conditioning_paths) for sample in samples],
        "seed": options.seed,
        **{name: value for name, value in asdict(search).items() if name not in FREE_OPTIONS},
        "guidance_interval": list(options.guidance_interval),  # a tuple would differ from the list of a JSON file
    }
    settings = {name: getattr(options, name) for name in SETTINGS}
    earlier = _earlier(search.path, search.steps, settings, searched)
    trajectories = _load(search, options, device, scheduler, samples)
    if earlier is None:
        errors = {name: trajectories.error(timesteps) for name, timesteps in spacings.items()}
        best = min(errors, key=lambda name: errors[name])
        timesteps, move = spacings[best], first_move(spacings[best])
    else:
        errors, move = earlier.searched["spacings"], earlier.searched["next_move"]
        timesteps = tuple(int(t) for t in earlier.timesteps)
    choice = Choice(timesteps, trajectories.error(timesteps), move)

    with tqdm(desc="search", unit="trial") as bar:

        def error_of(timesteps: Timesteps, limit: float) -> float:
            bar.update()
            return trajectories.error(timesteps, limit)

        for better in improve(choice, error_of, lowest):
            choice = better
            bar.set_postfix(error=f"{choice.error:.4f}", move=choice.move)
            found = {**searched, "spacings": errors, "error": choice.error, "next_move": choice.move}
            write_timesteps(search.path, TimestepsFile(choice.timesteps, settings, found))
    for name, error in errors.items():
        print(f"error {error:.4f}: {name} spacing, {' '.join(map(str, spacings[name]))}")
    print(f"error {choice.error:.4f}: these timesteps, {' '.join(map(str, choice.timesteps))}")
    print(f"timesteps in {search.path}")


def _earlier(
    path: Path, steps: int, settings: Mapping[str, Any], searched: Mapping[str, Any]
) -> Optional[TimestepsFile]:
    """The result of an earlier run of the same search, if there is one."""
    if not path.exists():
        return None
    found = read_timesteps(path)
    recorded = {**found.settings, **found.searched, "steps": len(found.timesteps)}
    for name, value in {**settings, **searched, "steps": steps}.items():
        if recorded.get(name) != value:
            raise UserError(
                f"{path} is of another search, with {name} {recorded.get(name)!r:.100}, not {value!r:.100}: "
                "remove it, or choose another --output"
            )
    move, errors = found.searched.get("next_move"), found.searched.get("spacings")
    if type(move) is not int or not isinstance(errors, dict):
        raise UserError(f"{path}: does not say how far its search is: remove it, or choose another --output")
    return found


def _load(
    search: SearchOptions, options: SampleOptions, device: Device, scheduler: Scheduler, samples: Sequence[Sample]
) -> Trajectories:
    """The samples with their texts, noises and conditioning frames, made as sample.py makes them."""
    config = options.transformer_class.config_class.from_dict(read_config(options.model_path))
    tokenizer = Tokenizer(options.text_encoder_name_1)
    sizes = [frame_size(options, sample) for sample in samples]
    plan = plan_run(options, device, tokenizer, texts_to_embed(options, samples), max(sizes))
    groups = video_groups(device, 1, 1, config.num_attention_heads)
    pipeline = build_pipeline(options, device, groups, tokenizer, plan)
    texts = pipeline.embed_prompts(
        [sample.prompt for sample in samples], options.guidance_scale, options.max_sequence_length
    )
    pipeline.text_encoder.release()
    conditioning = [encode_condition(options, pipeline, sample) for sample in samples]
    pipeline.vae.release()
    frames = (options.num_frames - 1) // 4 + 1
    return Trajectories(
        pipeline.transformer.get(),
        scheduler,
        options.guidance_scale,
        DenoiseSettings.of(None, options.guidance_interval),
        texts,
        [
            np.random.default_rng(noise_seed(options, sample)).standard_normal(
                (1, config.in_channels, frames, height // 8, width // 8), dtype=np.float32
            )
            for sample, (height, width) in zip(samples, sizes)
        ],
        conditioning,
        search.long_steps,
    )
