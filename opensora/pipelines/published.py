"""What the published programs do with the weights of a generation, besides the models themselves."""

from __future__ import annotations

from typing import Any

from opensora.config.generations import Generation
from opensora.datasets.t2v.text_cleaning import clean_caption
from opensora.schedulers import Scheduler, get_scheduler

CLIPPING = ("DDIM", "DDPM")  # samplers that `Generation.clips_x0` is about
# Samplers of diffusers whose timestep_spacing is "linspace" by default. That of the others is "leading".
LINSPACE = (
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "DPMSolverMultistep",
    "HeunDiscrete",
    "DEISMultistep",
    "KDPM2AncestralDiscrete",
)


def make_scheduler(generation: Generation, sample_method: str, **options: Any) -> Scheduler:
    """The sampler `sample_method` as the program of a generation builds it; `options`: of `get_scheduler`."""
    if generation.clips_x0 and sample_method in CLIPPING:
        options = {"clip_sample": True, **options}
    if generation.diffusers_spacing and sample_method in LINSPACE:
        options = {"timestep_spacing": "linspace", **options}
    return get_scheduler(sample_method, **options)


def prompt_text(generation: Generation, template: str, prompt: str) -> str:
    """A prompt in its template, as the text encoder gets it."""
    return cleaned_text(generation, template.replace("{}", prompt))


def cleaned_text(generation: Generation, text: str) -> str:
    """A text as the text encoder gets it."""
    for _ in range(generation.cleanings):
        text = clean_caption(text, support_chinese=False)
    return text
