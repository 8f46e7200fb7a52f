"""The samplers of Open-Sora v1.1, which run a whole sampling and know how to train: SAMPLERS has them by their names.

IDDPM(num_sampling_steps=None, cfg_scale=4.0, cfg_channel=None, ...)        "iddpm"; fields of the dataclass
IDDPMSpeed(...)                                                             "iddpm-speed", training only
DPMSolver(num_sampling_steps=20, cfg_scale=4.0)                             "dpm-solver", sampling only

scheduler.sample(model, latents, model_args, mask=None, noise=None, progress=False) -> (n, C, T, H, W) float32
    model: called as model(x, timestep, **model_args) with x of 2 n samples: prompts, then model.null_text(n)
    latents: N(0, 1), (n, C, T, H, W), with given frames put in where the mask is below 1
    model_args: y (n, 1, L, D) and what else the model takes by name (mask (n, L), height, ... (n,))
    mask: (n, T) edit rates in [0, 1]: 1 makes the frame, 0 keeps it, a rate between changes it so far; DPMSolver
        takes none but ones
    noise: k -> (n, C, T, H, W) for the k-th draw, numpy or Tensor; None: drawn

scheduler.timesteps(uniform) -> (B,) int: training timesteps from numbers in [0, 1)
scheduler.training_losses(model, x, model_args, mask=None, noise=None, t=None)
    -> {"loss": (B,), "mse": (B,), "vb": (B,)}
    x (B, C, T, H, W) latents; mask (B, T), 1 where a frame is trained, 0 where it is given, becomes x_mask too
TrainingLoss(model, scheduler): the mean loss as a Cell of tensors alone, for graph mode and `Optimizer.backward`
"""

from __future__ import annotations

from opensora.schedulers.iddpm.dpm_solver import DPMSolver
from opensora.schedulers.iddpm.loss import TrainingLoss
from opensora.schedulers.iddpm.sampler import IDDPM
from opensora.schedulers.iddpm.speed import IDDPMSpeed

SAMPLERS = {"iddpm": IDDPM, "iddpm-speed": IDDPMSpeed, "dpm-solver": DPMSolver}

__all__ = ["SAMPLERS", "DPMSolver", "IDDPM", "IDDPMSpeed", "TrainingLoss"]
