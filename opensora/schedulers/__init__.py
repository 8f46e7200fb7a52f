"""Noise schedules and samplers: `get_scheduler(name)` gives a sampler by its published name.

    name                     paper                                              calls   noise
    EulerAncestralDiscrete   Song et al. 2021, score SDEs, eq. 47               1       each call (v1.3's default)
    EulerDiscrete            Karras et al. 2022, EDM, algorithm 1, Euler        1       each call, not used
    DDIM                     Song, Meng & Ermon 2020, eq. 12                    1       none
    DDPM                     Ho et al. 2020, algorithm 2                        1       each call but at t = 0
    DPMSolverMultistep       Lu et al. 2022, DPM-Solver++, algorithm 2          1       none
    DPMSolverSinglestep      Lu et al. 2022, DPM-Solver++, algorithm 1          1       none
    PNDM                     Liu et al. 2022, algorithm 2                       1       none
    HeunDiscrete             Karras et al. 2022, EDM, algorithm 1, Heun         2       none
    DEISMultistep            Zhang & Chen 2023, section 3.4                     1       none
    KDPM2AncestralDiscrete   Lu et al. 2022, DPM-Solver, algorithm 1            2       each call, every other used
    CogVideoX                Yang et al. 2024, DDIM with shifted noise          1       none
    FlowMatchEulerDiscrete   Liu et al. 2023, rectified flow, Euler             1       none

Calls are those of the model per step (`order`); `timesteps` has an entry per call. PNDM makes four calls in each of its
first three steps.

Files: noise_schedule.py has the tables, base.py the options and the course of a run. On these stand diffusion.py (the
state of a run is x_t, by timestep), sigma_space.py (by the noise-to-signal ratio), two_stage.py and exponential.py;
each sampler has a file of its own. The samplers of Open-Sora v1.1, which run a whole sampling, are in iddpm/.
"""

from __future__ import annotations

from opensora.config.families import PREDICTION_TYPES
from opensora.config.options import did_you_mean
from opensora.errors import UserError
from opensora.schedulers.base import Scheduler
from opensora.schedulers.cogvideox import CogVideoX
from opensora.schedulers.ddim import DDIM
from opensora.schedulers.ddpm import DDPM
from opensora.schedulers.deis import DEISMultistep
from opensora.schedulers.dpm_solver_multistep import DPMSolverMultistep
from opensora.schedulers.dpm_solver_singlestep import DPMSolverSinglestep
from opensora.schedulers.euler import EulerDiscrete
from opensora.schedulers.euler_ancestral import EulerAncestralDiscrete
from opensora.schedulers.flow_match import FlowMatchEulerDiscrete
from opensora.schedulers.heun import HeunDiscrete
from opensora.schedulers.kdpm2_ancestral import KDPM2AncestralDiscrete
from opensora.schedulers.pndm import PNDM

SCHEDULERS: dict[str, type[Scheduler]] = {
    sampler.__name__: sampler
    for sampler in (
        EulerAncestralDiscrete,
        EulerDiscrete,
        DDIM,
        DDPM,
        DPMSolverMultistep,
        DPMSolverSinglestep,
        PNDM,
        HeunDiscrete,
        DEISMultistep,
        KDPM2AncestralDiscrete,
        CogVideoX,
        FlowMatchEulerDiscrete,
    )
}

__all__ = ["PREDICTION_TYPES", "SCHEDULERS", "Scheduler", "get_scheduler"]


def get_scheduler(name: str, **options) -> Scheduler:
    """The sampler of that name, a key of SCHEDULERS.

    Every sampler takes the options of `ScheduleOptions` (prediction_type, rescale_betas_zero_snr, timestep_spacing,
    beta_start, beta_end, beta_schedule) and `seed`; those that step by timestep (DDIM, DDPM, PNDM, CogVideoX) also
    clip_sample. PNDM, DEISMultistep, HeunDiscrete, KDPM2AncestralDiscrete and DPMSolverSinglestep have no rescale to
    zero SNR in their published form: asked for it, they warn and keep their betas. DPMSolverSinglestep has no spacing
    but linspace, FlowMatchEulerDiscrete no use for any option.

    Raises UserError for an unknown name or an option's value that doesn't exist.
    """
    if name not in SCHEDULERS:
        hint = did_you_mean(name, SCHEDULERS, cutoff=0.4)
        raise UserError(f"there is no sampler {name!r}{hint}; choose one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](**options)
