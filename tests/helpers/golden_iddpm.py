"""The golden cases of the samplers and losses of Open-Sora v1.1."""

from __future__ import annotations

from typing import Optional

import numpy as np
from golden_cases import case, given, load_case, relative_difference
from mindspore import Tensor, nn, ops

from opensora.schedulers.iddpm import IDDPM, DPMSolver, IDDPMSpeed

CASES = "opensora_cases.json"


class Toy(nn.Cell):
    """The model of the golden cases: a closed formula."""

    def __init__(self, target: np.ndarray, y_null: Optional[np.ndarray] = None, only_eps: bool = False):
        super().__init__()
        self.target, self.y_null, self.only_eps = target, y_null, only_eps
        self.masks = []  # the x_mask of each call

    def null_text(self, n: int) -> Tensor:
        return Tensor(np.tile(self.y_null, (n, 1, 1, 1)))

    def construct(self, x: Tensor, t: Tensor, y: Optional[Tensor] = None, x_mask: Optional[Tensor] = None) -> Tensor:
        self.masks.append(x_mask)
        t = t.reshape(-1, 1, 1, 1, 1)
        if x_mask is not None:
            t = ops.where(x_mask.reshape(x.shape[0], 1, -1, 1, 1), t, ops.zeros_like(t))
        target = Tensor(np.tile(self.target, (x.shape[0] // len(self.target), 1, 1, 1, 1)))
        a = ops.exp(-0.1 * (t / 1000) - 9.95 * (t / 1000) ** 2)
        eps = ops.sqrt(1 - a) * (x - ops.sqrt(a) * target) / (1 - 0.75 * a) + 0.05 * ops.tanh(x)
        if y is not None:
            eps = eps + 0.1 * y.reshape(x.shape[0], -1).mean(1).reshape(-1, 1, 1, 1, 1)
        return eps if self.only_eps else ops.cat((eps, ops.sin(x + t / 200)), 1)


def case_input(name: str, key: str) -> Optional[np.ndarray]:
    value = case(name, CASES)["inputs"].get(key)
    if not isinstance(value, dict):
        return value
    return given(name, key, value["shape"]) * np.float32(0.5 if value.get("map") == "0.5*n" else 1)


def table_rows(name: str) -> dict[str, float]:
    tables = IDDPM(**case(name, CASES)["kwargs"]).tables._asdict()
    return {key: relative_difference(tables[key], expected) for key, expected in load_case(name).items()}


def trajectory_rows(name: str) -> dict[str, float]:
    description, reference = case(name, CASES), load_case(name)
    x, mask, toy, draws = Tensor(case_input(name, "z")), case_input(name, "mask"), Toy(case_input(name, "target")), []

    def noise(k):
        draws.append(k)
        return given(name, f"noise{k}", x.shape)

    def predict(x, t, x_mask):
        return toy(x, Tensor(np.full(x.shape[0], t, np.float32)), None, x_mask)

    scheduler = IDDPM(num_sampling_steps=description["num_sampling_steps"], **description["kwargs"])
    states = [x, *scheduler.trajectory(predict, x, mask, noise)]
    assert draws == list(range(description["noise_draws"]))
    rows = {"trajectory": relative_difference(np.stack([state.asnumpy() for state in states]), reference["trajectory"])}
    if mask is not None:
        masks = np.stack([x_mask.asnumpy() for x_mask in toy.masks]).astype(np.float32)
        rows["x_mask"] = relative_difference(masks, reference["x_mask"])
    return rows


def sample_rows(name: str) -> dict[str, float]:
    description = case(name, CASES)
    z, draws = case_input(name, "z"), []

    def noise(k):
        draws.append(k)
        return given(name, f"noise{k}", (2 * len(z),) + z.shape[1:])[: len(z)]

    options = {
        key: description[key] for key in ("num_sampling_steps", "cfg_scale", "cfg_channel") if key in description
    }
    scheduler = {"iddpm": IDDPM, "dpm-solver": DPMSolver}[description["scheduler"]](**options)
    toy = Toy(case_input(name, "target"), case_input(name, "y_null"))
    samples = scheduler.sample(toy, z, {"y": Tensor(case_input(name, "y"))}, case_input(name, "mask"), noise)
    assert draws == list(range(description.get("noise_draws", 0)))
    return {"samples": relative_difference(samples.asnumpy(), load_case(name)["samples"])}


def loss_rows(name: str) -> dict[str, float]:
    description = case(name, CASES)
    toy = Toy(case_input(name, "target"), only_eps="only the eps half" in description["toy_model"])
    mask = case_input(name, "mask")
    losses = IDDPM(**description["kwargs"]).training_losses(
        toy,
        Tensor(case_input(name, "x_start")),
        {},
        None if mask is None else Tensor(np.array(mask, np.float32)),
        Tensor(case_input(name, "noise")),
        np.array(case_input(name, "t")),
    )
    return {key: relative_difference(losses[key].asnumpy(), expected) for key, expected in load_case(name).items()}


def speed_rows(name: str) -> dict[str, float]:
    scheduler = IDDPMSpeed(**case(name, CASES)["kwargs"])
    actual = {
        "p": scheduler.probabilities,
        "weights": scheduler.error_weights(),
        "meaningful_steps": np.array([scheduler.meaningful_steps]),
    }
    return {key: relative_difference(actual[key], expected) for key, expected in load_case(name).items()}


MEASURES = {
    "iddpm_tables": table_rows,
    "iddpm_traj": trajectory_rows,
    "iddpm_cfg": sample_rows,
    "dpm_solver": sample_rows,
    "iddpm_loss": loss_rows,
    "iddpm_speed": speed_rows,
}
