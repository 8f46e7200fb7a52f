"""Runs sampling with Open-Sora-Plan v1.1 and v1.2 as golden cases describe it, and compares with the references."""

from __future__ import annotations

import numpy as np
from golden_cases import case, given, load_case, relative_difference, weight
from golden_models import MODELS

from opensora.config.generations import GENERATIONS
from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.lazy import LazyModel
from opensora.pipelines.published import make_scheduler
from opensora.pipelines.text import TextEmbedding

PIPELINE_CASES = "pipeline_cases.json"


def golden_pipeline(name: str) -> OpenSoraPipeline:
    """The pipeline of a case, without a text encoder."""
    description = case(name, PIPELINE_CASES)
    version = "v" + "_".join(description["transformer"]["generation"].split(".")[:2])
    generation = GENERATIONS[version]
    models = {part: _model(f"{name}/{part}", description[part]) for part in ("transformer", "vae")}
    return OpenSoraPipeline(
        text_encoder=LazyModel(lambda: None),
        tokenizer=None,
        transformer=LazyModel(lambda: models["transformer"]),
        vae=LazyModel(lambda: models["vae"]),
        scheduler=make_scheduler(generation, description["sampler"], prediction_type="epsilon"),
        generation=generation,
    )


def _model(name: str, description: dict):
    model = MODELS[description["model"]](**description["config"])
    buffers = model.torch_buffers()
    state = model.torch_state()
    model.load_torch_state({key: x if key in buffers else weight(name, key, x.shape) for key, x in state.items()})
    return model.set_train(False)


def golden_text(name: str, pipeline: OpenSoraPipeline) -> TextEmbedding:
    """The embedding of negative prompt and prompt, cut as the generation cuts them."""
    inputs = case(name, PIPELINE_CASES)["inputs"]
    states = [given(name, key, inputs[key]["shape"]) for key in ("negative_prompt_embeds", "prompt_embeds")]
    kept = inputs["negative_tokens_kept"], inputs["text_tokens_kept"]
    states, mask = np.concatenate(states), np.stack([np.arange(states[0].shape[1]) < count for count in kept])
    if pipeline.generation.cuts_texts:
        states = states[:, : kept[1]]
        mask = np.ones(states.shape[:2])
    return TextEmbedding(states, mask.astype(np.int32))


def pipeline_rows(name: str) -> dict[str, float]:
    """Relative differences of the latents after every step; the largest difference of a pixel in levels."""
    description, reference = case(name, PIPELINE_CASES), load_case(name)
    pipeline = golden_pipeline(name)
    trajectory, step = [], pipeline.scheduler.step

    def recorded_step(*args, **options):
        trajectory.append(step(*args, **options))
        return trajectory[-1]

    pipeline.scheduler.step = recorded_step
    shape = description["inputs"]["init"]["shape"]
    latents = pipeline.denoise(
        golden_text(name, pipeline),
        description["num_frames"],
        description["height"],
        description["width"],
        description["num_inference_steps"],
        description["guidance_scale"],
        latents=given(name, "init", shape),
        step_noise=lambda k: given(name, f"noise{k}", shape),
        progress=False,
    )
    assert (pipeline.scheduler.timesteps == reference["timesteps"]).all()
    frames = pipeline.output(latents, "frames").astype(int)
    assert frames.shape == reference["frames"].shape
    return {
        "trajectory": relative_difference(np.stack([x.asnumpy() for x in trajectory]), reference["trajectory"]),
        "frames": float(np.abs(frames - reference["frames"]).max()),
    }
