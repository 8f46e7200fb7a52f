"""Noise schedules and samplers: `get_scheduler(name)` returns a sampler by its published name.

    name                     paper                                              calls   noise
    EulerAncestralDiscrete   Song et al. 2021, score SDEs, eq. 47               1       each call (v1.3's default)
    EulerDiscrete            Karras et al. 2022, EDM, algorithm 1, Euler        1       each call, not used
    DDIM                     Song, Meng & Ermon 2020, eq. 12                    1       none
    DDPM                     Ho et al. 2020, algorithm 2                        1       each call except at t = 0
    DPMSolverMultistep       Lu et al. 2022, DPM-Solver++, algorithm 2          1       none
    DPMSolverSinglestep      Lu et al. 2022, DPM-Solver++, algorithm 1          1       none
    PNDM                     Liu et al. 2022, algorithm 2                       1       none
    HeunDiscrete             Karras et al. 2022, EDM, algorithm 1, Heun         2       none
    DEISMultistep            Zhang & Chen 2023, section 3.4                     1       none
    KDPM2AncestralDiscrete   Lu et al. 2022, DPM-Solver, algorithm 1            2       each call, every other used
    CogVideoX                Yang et al. 2024, DDIM with shifted noise          1       none
    FlowMatchEulerDiscrete   Liu et al. 2023, rectified flow, Euler             1       none

"calls" is the number of model calls per step (`order`); `timesteps` has one entry per call. PNDM makes four calls in
each of its first three steps.

`set_timesteps(timesteps=[...])` takes the timesteps at which the steps start, instead of their number: one per step,
also where a step has two calls. All samplers but PNDM can do so (`takes_timesteps`).

schedule.py holds the noise schedules and options, base.py the interface; vp.py, sigma.py, exponential.py and
flow_match.py each hold the samplers of one state. The samplers of Open-Sora v1.1, which run the whole loop, are in
iddpm/.
"""

from __future__ import annotations

from opensora.config.families import PREDICTION_TYPES
from opensora.config.options import did_you_mean
from opensora.errors import UserError
from opensora.schedulers.base import GuidedSampler, Scheduler
from opensora.schedulers.exponential import DEISMultistep, DPMSolverMultistep, DPMSolverSinglestep
from opensora.schedulers.flow_match import FlowMatchEulerDiscrete
from opensora.schedulers.schedule import ScheduleOptions
from opensora.schedulers.sigma import EulerAncestralDiscrete, EulerDiscrete, HeunDiscrete, KDPM2AncestralDiscrete
from opensora.schedulers.vp import DDIM, DDPM, PNDM, CogVideoX

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

__all__ = ["PREDICTION_TYPES", "SCHEDULERS", "GuidedSampler", "ScheduleOptions", "Scheduler", "get_scheduler"]


def get_scheduler(name: str, **options) -> Scheduler:
    """Returns the sampler of that name, a key of SCHEDULERS.

    Every sampler accepts the fields of `ScheduleOptions` and `seed`; those indexed by timestep (DDIM, DDPM, PNDM,
    CogVideoX) also accept clip_sample. PNDM, DEISMultistep, HeunDiscrete, KDPM2AncestralDiscrete and
    DPMSolverSinglestep have no rescale to zero SNR in their published form: they warn and keep their betas.
    DPMSolverSinglestep always uses linspace spacing; FlowMatchEulerDiscrete ignores all options.

    Raises:
        UserError: an unknown name, or an invalid value of an option.
    """
    if name not in SCHEDULERS:
        hint = did_you_mean(name, SCHEDULERS, cutoff=0.4)
        raise UserError(f"unknown sampler {name!r}{hint}; choose one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](**options)
