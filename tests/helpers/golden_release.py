"""The golden end-to-end cases: tiny models of the published architecture, with weights derived from their names.

The reference outputs come from the published code. The token ids of its prompts are recorded in release_e2e.json.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from golden_cases import GOLDEN, case, given, load_case, relative_difference, weight
from mindspore import Tensor
from tiny_models import DIT, TEXT, VAE

from opensora.models import MT5EncoderModel, OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.pretrained import PretrainedModel
from opensora.pipelines.base import VideoPipeline
from opensora.pipelines.lazy import LazyModel
from opensora.schedulers import get_scheduler

FILE = "release_e2e.json"
LAYERS = {"num_layers": 6}
MODELS = {
    "release_dit": (OpenSoraT2V_v1_3, {**DIT, **LAYERS}),
    "release_inpaint": (OpenSoraInpaint_v1_3, {**DIT, **LAYERS}),
    "release_vae": (
        WFVAEModel,
        {
            **VAE,
            "encoder_num_resblocks": 2,
            "decoder_num_resblocks": 2,
            "decoder_energy_flow_hidden_size": 16,
            "connect_res_layer_num": 2,
        },
    ),
    "release_mt5": (MT5EncoderModel, {**TEXT, "vocab_size": 640, "num_layers": 3, "model_type": "mt5"}),
}
# The published file stores this tensor under three names; the weights follow from the last one.
EMBEDDING_NAMES = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}


class RecordedTokenizer:
    """Returns the recorded token ids of the golden prompts."""

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), max_length), np.int32)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            tokens = case("token_ids", FILE)[text]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask


def load_model(name: str, dtype=ms.float32) -> PretrainedModel:
    model_class, config = MODELS[name]
    model = model_class(**config)
    model.load_torch_state(
        {
            key: weight(name, EMBEDDING_NAMES.get(key, key), parameter.shape)
            for key, parameter in model.parameters_and_names()
        }
    )
    return model.cast(dtype)


def golden_pipeline(pipeline_class: type[VideoPipeline], dtype=ms.float32) -> VideoPipeline:
    is_inpaint = pipeline_class.transformer_class is OpenSoraInpaint_v1_3
    return pipeline_class(
        LazyModel(lambda: load_model("release_mt5", dtype)),
        RecordedTokenizer(),
        LazyModel(lambda: load_model("release_inpaint" if is_inpaint else "release_dit", dtype)),
        LazyModel(lambda: load_model("release_vae", dtype)),
        get_scheduler("EulerAncestralDiscrete", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )


def check_golden_run(name: str, pipeline: VideoPipeline) -> None:
    """Runs a golden case and compares its latents and frames with the reference."""
    run, reference = case(name, FILE), load_case(name)
    shape = reference["latents"].shape
    options = {}
    if run["condition"]:
        paths = [GOLDEN / file for file in run["condition"]]
        options = dict(crop_for_hw=True, sample_condition=False, conditional_pixel_values_path=paths)
    latents = pipeline(
        run["prompt"],
        run["num_frames"],
        run["height"],
        run["width"],
        run["steps"],
        run["guidance_scale"],
        max_sequence_length=run["max_sequence_length"],
        latents=given(name, "init", shape),
        step_noise=lambda k: given(name, f"noise{k}", shape),
        output_type="latent",
        **options,
    )
    assert relative_difference(latents, reference["latents"]) < 1e-3
    frames = pipeline.output(Tensor(latents), "frames")
    assert frames.shape == reference["frames"].shape and frames.dtype == np.uint8
    assert (np.abs(frames.astype(int) - reference["frames"]) <= 1).mean() >= 0.999
