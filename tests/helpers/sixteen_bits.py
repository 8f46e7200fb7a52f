"""Errors of 16-bit arithmetic: the demo models in fp16 and bf16 against float32, on scenes of the demo dataset.

    python tests/helpers/sixteen_bits.py [--scenes 4]

Prints for each model the largest error, relative to the largest value, and the RMS error, relative to the RMS value.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

import mindspore as ms
import numpy as np
from mindspore import Tensor

from opensora.config.commands import DEMO_WORLD
from opensora.demo.drawing import draw_clip
from opensora.demo.scenes import WORLDS, scenes
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.text_encoder.tokenizer import Tokenizer

DEMO = Path(__file__).resolve().parents[2] / "examples/demo_model"
TIMESTEPS = (901.0, 300.0)


class DemoModels:
    """The three demo models in a dtype; each method runs one of them on a scene and returns float32."""

    def __init__(self, dtype):
        self.text_encoder = MT5EncoderModel.from_pretrained(DEMO / "text_encoder", dtype).set_train(False)
        self.transformer = OpenSoraT2V_v1_3.from_pretrained(DEMO / "transformer", dtype).set_train(False)
        self.vae = WFVAEModel.from_pretrained(DEMO / "vae", dtype).set_train(False)

    def encode_text(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.text_encoder(Tensor(ids), Tensor(mask)).float().asnumpy()

    def encode(self, video: np.ndarray) -> np.ndarray:
        return self.vae.encode(Tensor(video)).mode().asnumpy()

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self.vae.decode(Tensor(latents)).float().asnumpy()

    def denoise(self, latents: np.ndarray, timestep: float, states: np.ndarray, mask: np.ndarray) -> np.ndarray:
        time = Tensor(np.array([timestep], np.float32))
        prediction = self.transformer(Tensor(latents), time, Tensor(states[:, None]), None, Tensor(mask[:, None]))
        return prediction.float().asnumpy()


def relative_errors(value: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(largest error / largest value, RMS error / RMS value)."""
    error = value.astype(np.float64) - expected
    return np.array(
        [
            np.abs(error).max() / np.abs(expected).max(),
            np.sqrt(np.square(error).mean() / np.square(expected, dtype=np.float64).mean()),
        ]
    )


def measure(count: int) -> dict[str, dict[str, np.ndarray]]:
    """Mean errors over `count` scenes: precision -> model -> `relative_errors`."""
    exact = DemoModels(ms.float32)
    rounded = {"fp16": DemoModels(ms.float16), "bf16": DemoModels(ms.bfloat16)}
    tokenizer = Tokenizer(DEMO / "text_encoder")
    rng = np.random.default_rng(0)
    every = scenes(True, WORLDS[DEMO_WORLD])
    errors: dict[str, dict[str, list]] = {name: {} for name in rounded}
    for index in range(count):
        scene = every[index * len(every) // count]
        video = (draw_clip(scene, rng, WORLDS[DEMO_WORLD]).transpose(3, 0, 1, 2)[None] / 127.5 - 1).astype(np.float32)
        ids, mask = tokenizer([scene.caption()], 32)
        states = exact.encode_text(ids, mask)
        latents = exact.encode(video)
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        normalized = exact.vae.normalize(Tensor(latents)).asnumpy()
        cases: dict[str, Callable] = {
            "text encoder": lambda m: m.encode_text(ids, mask),
            "WFVAE, encode": lambda m: m.encode(video),
            "WFVAE, decode": lambda m: m.decode(latents),
        }
        for time in TIMESTEPS:
            noisy = (1 - time / 1000) * normalized + time / 1000 * noise
            cases[f"DiT, timestep {time:.0f}"] = lambda m, x=noisy, t=time: m.denoise(x, t, states, mask)
        for model, run in cases.items():
            expected = run(exact)
            for precision, models in rounded.items():
                errors[precision].setdefault(model, []).append(relative_errors(run(models), expected))
    return {p: {model: np.mean(values, 0) for model, values in of.items()} for p, of in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4, help="number of scenes to average over")
    args = parser.parse_args()
    result = measure(args.scenes)
    print("| model | fp16: largest / RMS | bf16: largest / RMS |\n|---|---:|---:|")
    for model in result["fp16"]:
        print(f"| {model} |", " | ".join("{:.1e} / {:.1e}".format(*result[p][model]) for p in result), "|")


if __name__ == "__main__":
    main()
