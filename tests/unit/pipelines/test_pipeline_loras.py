"""LoRAs of pipelines: loading, scaling, unloading, and fused weights for comparison."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from tiny_models import make_release

from opensora.checkpoint.lora.files import LowRank, write_lora
from opensora.checkpoint.lora.fuse import fuse_loras
from opensora.checkpoint.lora.settings import LoRASettings
from opensora.cli.sample import main as sample
from opensora.config.lora import LoRASpec
from opensora.models import OpenSoraT2V_v1_3
from opensora.models.lora import linear_shapes, select_layers
from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.compiled import LEAST_CALLS

# Guidance multiplies rounding errors, so it is weak.
SAMPLE = dict(num_frames=5, height=32, width=64, max_sequence_length=64, output_type="latent", guidance_scale=1.5)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Tiny models, and two LoRAs of the transformer."""
    release = make_release(tmp_path_factory.mktemp("release"))
    shapes = linear_shapes(OpenSoraT2V_v1_3.from_pretrained(release / "transformer"))
    for name, rank, targets in (("one", 4, OpenSoraT2V_v1_3.lora_targets), ("two", 2, ["ff.net.0.proj", "to_q"])):
        rng = np.random.default_rng(rank)
        layers = {
            layer: LowRank(*(rng.standard_normal(size).astype(np.float32) / 16 for size in ((rank, k), (n, rank))), 2.0)
            for layer, (n, k) in shapes.items()
            if layer in select_layers(shapes, targets)
        }
        write_lora(release / f"{name}.safetensors", layers, LoRASettings(rank, 2.0 * rank))
    return release


def pipeline_of(release: Path, transformer: str = "transformer", **options) -> OpenSoraPipeline:
    return OpenSoraPipeline.from_pretrained(release / transformer, release / "vae", release / "text", **options)


def test_loras_are_loaded_scaled_and_unloaded(release, mode):
    """In PyNative mode the transformer is compiled for this number of steps."""
    pipeline, steps = pipeline_of(release), LEAST_CALLS if mode == ms.PYNATIVE_MODE else 2

    def make() -> np.ndarray:
        return pipeline("A cat.", **SAMPLE, num_inference_steps=steps)

    base = make()
    assert pipeline.load_lora(release / "one.safetensors", 0.5) == "one"
    half = make()
    pipeline.set_lora_scale("one", 0)
    assert (make() == base).all()
    pipeline.set_lora_scale("one", 1)
    whole = make()
    assert relative_difference(half, base) > 0.01 and relative_difference(whole, half) > 0.01
    pipeline.load_lora(release / "two.safetensors", -0.5, "other")
    both = make()
    pipeline.unload_lora("one")
    pipeline.load_lora(release / "one.safetensors", name="one again")
    assert relative_difference(make(), both) < 1e-5
    pipeline.unload_lora()
    assert (make() == base).all()
    assert pipeline.compiled == (mode == ms.PYNATIVE_MODE)
    pipeline.load_lora(release / "one.safetensors")
    pipeline.transformer.release()  # and loaded again with its LoRA
    assert relative_difference(make(), whole) < 1e-6


@pytest.mark.parametrize("options", [{}, {"streamed": True}, {"weights": "q8_0"}, {"dtype": ms.bfloat16}])
def test_unfused_equals_fused(release, options, tmp_path):
    """In float32 to 1e-5; weights that are rounded after fusing differ by their rounding."""
    specs = [LoRASpec(release / "one.safetensors", 0.5), LoRASpec(release / "two.safetensors", -1.5)]
    fuse_loras(release / "transformer", specs, tmp_path / "fused")
    unfused = pipeline_of(release, **options)
    for spec in specs:
        unfused.load_lora(spec.path, spec.scale)
    fused = pipeline_of(release, transformer=str(tmp_path / "fused"), **options)
    a, b = (pipeline("A cat.", **SAMPLE, num_inference_steps=2) for pipeline in (unfused, fused))
    exact = not options or "streamed" in options
    assert relative_difference(a, b) < (1e-5 if exact else 0.01)
    base = pipeline_of(release, **options)("A cat.", **SAMPLE, num_inference_steps=2)
    assert relative_difference(a, base) > 0.03


def test_names_are_checked(release):
    pipeline = pipeline_of(release)
    pipeline.load_lora(release / "one.safetensors")
    for call, words in (
        (lambda: pipeline.load_lora(release / "one.safetensors"), "there is a LoRA of the name one already"),
        (lambda: pipeline.set_lora_scale("two", 1), "no LoRA of the name 'two' is loaded; loaded: one"),
        (lambda: pipeline.unload_lora("two"), "no LoRA of the name 'two'"),
        (lambda: pipeline.set_lora_scale("one", float("nan")), "the scale of a LoRA"),
        (lambda: pipeline.load_lora(release / "transformer"), "not a LoRA"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert list(pipeline.loras.loaded) == ["one"]


def test_sample_command_takes_loras(release, tmp_path, capsys):
    """The latents are those of the pipeline; the record names the LoRAs; other LoRAs need another folder."""
    flags = (
        f"--model_path {release}/transformer --ae_path {release}/vae --text_encoder_name_1 {release}/text "
        "--save_latents --num_frames 5 --height 32 --width 64 --num_sampling_steps 2 --sample_method DDIM "
        "--rescale_betas_zero_snr "
        f"--max_sequence_length 64 --device CPU --text_prompt cat --guidance_scale 1.5 --save_img_path {tmp_path}"
    ).split()
    loras = [f"{release}/one.safetensors:0.5", f"{release}/two.safetensors"]
    sample([*flags, "--lora", *loras])
    (record,) = tmp_path.glob("*.json")
    recorded = json.loads(record.read_text())["arguments"]["lora"]
    assert recorded == [loras[0], f"{loras[1]}:1"]
    latents = np.load(next(tmp_path.glob("*.npy")))
    pipeline = OpenSoraPipeline.from_pretrained(
        *(release / name for name in ("transformer", "vae", "text")), sample_method="DDIM"
    )
    pipeline.load_lora(release / "one.safetensors", 0.5)
    pipeline.load_lora(release / "two.safetensors")
    expected = pipeline("cat", **SAMPLE, num_inference_steps=2, seed=(1234, 0, 0))
    assert relative_difference(latents, expected) < 1e-6
    with pytest.raises(ValueError, match="was made with lora"):
        sample([*flags, "--lora", loras[0]])
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        sample([*flags, "--lora", "nowhere.safetensors:1", "--overwrite"])
