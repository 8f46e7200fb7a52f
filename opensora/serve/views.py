"""How clients see jobs and the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import opensora
from opensora.config.acceleration import CACHE_THRESHOLDS
from opensora.serve.catalog import Catalog
from opensora.serve.options import ServeOptions
from opensora.serve.requests import LONGEST_PROMPT
from opensora.serve.store import COMPLETED, IN_PROGRESS, Job
from opensora.serve.workers import Worker

DENOISE_PERCENT, DECODE_PERCENT = 5, 90  # progress at the start of these stages
ASKED = (
    *("prompt", "negative_prompt", "model", "size", "num_frames", "fps", "steps", "guidance_scale", "sampler"),
    *("cache", "seed", "frames", "loras", "remixed_from"),
)


@dataclass
class Progress:
    """Of a running job."""

    stage: Optional[str] = None
    step: int = 0
    steps: int = 0
    seconds_left: Optional[float] = None
    preview_step: Optional[int] = None

    @property
    def percent(self) -> int:
        if self.stage == "denoise":
            return DENOISE_PERCENT + (DECODE_PERCENT - DENOISE_PERCENT) * self.step // max(self.steps, 1)
        return DECODE_PERCENT if self.stage == "decode" else 0


def job_view(job: Job, progress: Progress, position: Optional[int]) -> dict[str, Any]:
    """The answer of GET /v1/videos/{id}.

    Args:
        progress: of a running job.
        position: place in the queue, from 1.
    """
    spec, running = job.spec, job.status == IN_PROGRESS
    preview = f"/v1/videos/{job.id}/preview?step={progress.preview_step}"
    return {
        "id": job.id,
        "object": "video",
        "kind": "image" if spec["num_frames"] == 1 else "video",
        "status": job.status,
        **{name: spec[name] for name in ASKED},
        "seconds": round(spec["num_frames"] / spec["fps"], 3),
        "priority": job.priority,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.completed_at,
        "position": position,
        "stage": progress.stage if running else None,
        "step": progress.step if running else 0,
        "progress": 100 if job.status == COMPLETED else progress.percent if running else 0,
        "seconds_left": progress.seconds_left if running else None,
        "preview": preview if running and progress.preview_step is not None else None,
        "error": job.error,
        "attempts": job.attempts,
    }


def service_view(options: ServeOptions, catalog: Catalog, workers: Sequence[Worker], waiting: int) -> dict[str, Any]:
    """The answer of GET /v1/service."""
    return {
        "version": opensora.__version__,
        "models": [
            {
                "id": model.id,
                "task": model.task,
                "title": model.title,
                "defaults": {"model": model.id, **model.defaults},
                "sizes": list(model.sizes),
                "frames": list(model.frames),
                "fps": model.defaults["fps"],
                "example_prompts": list(model.example_prompts),
            }
            for model in catalog.models.values()
        ],
        "samplers": list(next(iter(catalog.models.values())).samplers),
        "caches": list(CACHE_THRESHOLDS),
        "loras": list(catalog.loras()),
        "limits": {
            "max_queue": options.max_queue,
            "max_frames": options.max_frames,
            "max_pixels": options.max_pixels,
            "max_steps": options.max_steps,
            "max_prompt": LONGEST_PROMPT,
            "max_upload_bytes": options.max_upload_bytes,
            "rate_limit": options.rate_limit,
        },
        "workers": [{"state": worker.state, "job": worker.job, "message": worker.reason or None} for worker in workers],
        "queue": waiting,
    }
