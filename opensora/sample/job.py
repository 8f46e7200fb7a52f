"""A run of sample.py: what is missing is made, in stages or prompt by prompt."""
from __future__ import annotations

import sys
from typing import Iterator, Sequence

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from opensora.device import Device
from opensora.models import OpenSoraT2V_v1_3, get_vae
from opensora.models.loading import read_config
from opensora.models.text_encoder.mt5 import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.parts import Part
from opensora.pipelines.text import TextEmbedding
from opensora.sample.caption_refiner import refine_prompts
from opensora.sample.options import SampleOptions, read_prompts
from opensora.sample.outputs import (Sample, check_same_run, plan_samples, write_frames, write_grids, write_latents,
                                     write_metadata)
from opensora.schedulers import get_scheduler


def build_pipeline(options: SampleOptions, device: Device) -> OpenSoraPipeline:
    """The pipeline a run's options describe; models load when they are first used."""
    dtype = device.dtype

    def load_vae():
        vae = get_vae(options.ae, options.ae_path, dtype)
        vae.enable_tiling(options.enable_tiling)
        return vae

    return OpenSoraPipeline(
        text_encoder=Part(lambda: MT5EncoderModel.from_pretrained(options.text_encoder_name_1, dtype=dtype)),
        tokenizer=Tokenizer(options.text_encoder_name_1),
        transformer=Part(lambda: OpenSoraT2V_v1_3.from_pretrained(
            options.ms_checkpoint or options.model_path, dtype=dtype, config=read_config(options.model_path))),
        vae=Part(load_vae),
        scheduler=get_scheduler(options.sample_method, **options.scheduler_arguments()),
    )


def run(options: SampleOptions, device: Device) -> None:
    """Makes every sample that is not there yet; finished ones stay unless --overwrite.

    Raises:
        ValueError, OSError: prompts or files that cannot be used.
    """
    samples = plan_samples(options, read_prompts(options.text_prompt))
    if not options.overwrite:
        for sample in samples:
            check_same_run(sample, options)
    pipeline = build_pipeline(options, device)
    if options.decode_latents:
        todo = [sample for sample in samples if options.overwrite or not sample.path.exists()]
        absent = [sample.latents_path for sample in todo if not sample.latents_path.exists()]
        if absent:
            raise FileNotFoundError(f"{absent[0]}: no latents to decode; make them with --save_latents")
    else:
        todo = _missing(options, samples)
        _announce(options, samples, todo)
        _make_latents(options, device, pipeline, todo)
    if not options.save_latents:
        if options.decode_latents or options.save_memory:
            for sample in tqdm(todo, desc="decoding", unit="video", disable=not device.is_main):
                _decode(options, pipeline, sample, Tensor(np.load(sample.latents_path)))
                if not options.decode_latents:
                    sample.latents_path.unlink()
        write_grids(options, samples)
    print(f"results in {options.save_img_path}")


def _missing(options: SampleOptions, samples: Sequence[Sample]) -> list[Sample]:
    def finished(sample: Sample) -> bool:
        return (sample.latents_path if options.save_latents else sample.path).exists()
    return [sample for sample in samples if options.overwrite or not finished(sample)]


def _announce(options: SampleOptions, samples: Sequence[Sample], todo: Sequence[Sample]) -> None:
    done = len(samples) - len(todo)
    if done:
        print(f"{done} of {len(samples)} results are in {options.save_img_path} already; --overwrite makes them again",
              file=sys.stderr)


def _make_latents(options: SampleOptions, device: Device, pipeline: OpenSoraPipeline, todo: Sequence[Sample]) -> None:
    """Denoises every sample. Latents go to the decoder at once, or to files if a later stage decodes them."""
    if not todo:
        return
    prompts = list(dict.fromkeys(sample.prompt for sample in todo))
    wording = dict(zip(prompts, prompts))
    if options.caption_refiner:
        wording = refine_prompts(options.caption_refiner, prompts, options.seed, device.target)
    texts = dict(_embed(options, pipeline, wording))
    if options.save_memory:
        pipeline.text_encoder.release()
    for sample in tqdm(todo, desc="videos", unit="video", disable=not device.is_main):
        if options.save_memory and sample.latents_path.exists() and not options.overwrite:
            continue  # a run that was stopped between the stages
        seed = (options.seed, sample.index, sample.number)
        latents = pipeline.denoise(texts[sample.prompt], options.num_frames, options.height, options.width,
                                   options.num_sampling_steps, options.guidance_scale, seed, progress=device.is_main)
        write_metadata(sample, options, device, seed, wording[sample.prompt])
        if options.save_latents or options.save_memory:
            write_latents(sample.latents_path, latents.asnumpy())
        else:
            _decode(options, pipeline, sample, latents)
    if options.save_memory:
        pipeline.transformer.release()


def _embed(options: SampleOptions, pipeline: OpenSoraPipeline,
           wording: dict[str, str]) -> Iterator[tuple[str, TextEmbedding]]:
    for prompt, refined in wording.items():
        yield prompt, pipeline.embed_prompt(refined, options.guidance_scale, options.max_sequence_length)


def _decode(options: SampleOptions, pipeline: OpenSoraPipeline, sample: Sample, latents: Tensor) -> None:
    write_frames(sample.path, pipeline.decode(latents), options.fps)
