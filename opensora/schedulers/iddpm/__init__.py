"""The samplers of Open-Sora v1.1, which run the whole sampling loop and define the training loss.

They use the discrete process of Ho et al. 2020, x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε, with the learned variance and
the respaced timesteps of Nichol & Dhariwal 2021. SAMPLERS maps their config names to the classes:

    IDDPM(num_sampling_steps=None, cfg_scale=4.0, cfg_channel=None, ...)   "iddpm"; fields of the dataclass
    IDDPMSpeed(...)                                                        "iddpm-speed", training only
    DPMSolver(num_sampling_steps=20, cfg_scale=4.0)                        "dpm-solver", sampling only

    scheduler.sample(model, latents, model_args, mask=None, noise=None, progress=False) -> (n, C, T, H, W) float32
        model: called as model(x, timestep, **model_args) with x of 2 n samples: prompts, then model.null_text(n)
        latents: N(0, 1), (n, C, T, H, W), with the conditioning frames filled in where the mask is below 1
        model_args: y (n, 1, L, D) and the model's other keyword arguments (mask (n, L), height, ... (n,))
        mask: (n, T) edit rates in [0, 1]: 1 generates the frame, 0 keeps it, values between change it partially;
            DPMSolver accepts only ones
        noise: k -> (n, C, T, H, W) for the k-th draw, numpy or Tensor; None: sampled

    scheduler.timesteps(uniform) -> (B,) int: training timesteps from numbers in [0, 1)
    scheduler.training_losses(model, x, model_args, mask=None, noise=None, t=None)
        -> {"loss": (B,), "mse": (B,), "vb": (B,)}
        x (B, C, T, H, W) latents; mask (B, T), 1 for trained frames, 0 for conditioning frames, is also the x_mask
    TrainingLoss(model, scheduler): the mean loss as a Cell with only tensor inputs, for graph mode and
        `Optimizer.backward`
"""

from __future__ import annotations

from opensora.schedulers.iddpm.loss import TrainingLoss
from opensora.schedulers.iddpm.sampler import IDDPM, DPMSolver, IDDPMSpeed

SAMPLERS = {"iddpm": IDDPM, "iddpm-speed": IDDPMSpeed, "dpm-solver": DPMSolver}

__all__ = ["SAMPLERS", "DPMSolver", "IDDPM", "IDDPMSpeed", "TrainingLoss"]
