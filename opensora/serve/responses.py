"""The answers of the HTTP interface, for its description in /openapi.json."""

from __future__ import annotations

from typing import Any, Literal, Optional

from pydantic import BaseModel, Field

from opensora.serve.requests import GivenFrame, GivenLoRA

JOB_EXAMPLE: Any = {
    "id": "video_6f1d3c0e4b5a49d2a7c8e9f001122334",
    "object": "video",
    "kind": "video",
    "status": "in_progress",
    "prompt": "a red circle moves right on a blue background",
    "negative_prompt": "",
    "model": "text-to-video",
    "size": "64x64",
    "num_frames": 17,
    "fps": 8,
    "seconds": 2.125,
    "steps": 50,
    "guidance_scale": 4.0,
    "sampler": "EulerAncestralDiscrete",
    "cache": None,
    "seed": 1,
    "frames": [],
    "loras": [],
    "priority": 0,
    "remixed_from": None,
    "created_at": 1750000000.0,
    "started_at": 1750000001.0,
    "completed_at": None,
    "position": None,
    "stage": "denoise",
    "step": 12,
    "progress": 25,
    "seconds_left": 6.5,
    "preview": "/v1/videos/video_6f1d3c0e4b5a49d2a7c8e9f001122334/preview?step=12",
    "error": None,
    "attempts": 1,
}


class ErrorDetail(BaseModel):
    code: str = Field(description="for programs", examples=["queue_full"])
    message: str = Field(description="what is wrong, and the remedy")
    param: Optional[str] = Field(None, description="the field of the request that is wrong")


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class JobError(BaseModel):
    code: str
    message: str


class VideoJob(BaseModel):
    model_config = {"json_schema_extra": {"examples": [JOB_EXAMPLE]}}

    id: str
    object: Literal["video"]
    kind: Literal["video", "image"]
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    prompt: str
    negative_prompt: str
    model: str
    size: str = Field(description="WIDTHxHEIGHT in pixels")
    num_frames: int
    fps: int
    seconds: float = Field(description="length of the video")
    steps: int
    guidance_scale: float
    sampler: str
    cache: Optional[str]
    seed: int
    frames: list[GivenFrame]
    loras: list[GivenLoRA]
    priority: int
    remixed_from: Optional[str]
    created_at: float = Field(description="seconds since 1970")
    started_at: Optional[float]
    completed_at: Optional[float]
    position: Optional[int] = Field(description="place in the queue, from 1")
    stage: Optional[Literal["load", "encode", "denoise", "decode"]]
    step: int
    progress: int = Field(ge=0, le=100)
    seconds_left: Optional[float] = Field(description="of denoising")
    preview: Optional[str] = Field(description="address of the latest preview")
    error: Optional[JobError]
    attempts: int = Field(description="how often it was started")


class VideoList(BaseModel):
    object: Literal["list"]
    data: list[VideoJob]
    has_more: bool


class UploadedFile(BaseModel):
    id: str
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int
    fps: float
    name: str


class Estimate(BaseModel):
    memory_bytes: int = Field(description="of a worker at most; 0 if it does not fit")
    seconds: float = Field(description="without waiting and without loading the models")
    tokens: int
    basis: Literal["measured", "counted"] = Field(description="finished videos of this model, or counted work")
    fits: bool
    message: str


class CommandLine(BaseModel):
    command: str


class Deleted(BaseModel):
    id: str
    deleted: bool


class Health(BaseModel):
    status: Literal["ok"]


class ModelDescription(BaseModel):
    id: str
    task: Literal["text-to-video", "image-to-video"]
    title: str
    defaults: dict[str, Any]
    sizes: list[str]
    frames: list[int]
    fps: int
    example_prompts: list[str]


class WorkerState(BaseModel):
    state: Literal["starting", "idle", "busy", "failing"]
    job: Optional[str]
    message: Optional[str] = Field(description="why it last ended, with the last lines of its log")


class ServiceDescription(BaseModel):
    version: str
    models: list[ModelDescription]
    samplers: list[str]
    caches: list[str]
    loras: list[str]
    limits: dict[str, int]
    workers: list[WorkerState]
    queue: int


_ERRORS = {
    401: "the token is missing or wrong",
    403: "a page of another site asks",
    404: "there is no such video or file",
    409: "not in this status",
    413: "the request is too large",
    415: "the form of the body is not accepted",
    422: "a field of the request is not accepted",
    429: "the queue is full, or the client sends too many requests; see Retry-After",
    503: "too many clients follow the events",
    507: "the disk is full",
}


def errors(*statuses: int) -> dict[Any, dict[str, Any]]:
    """The description of a route's errors; every route may answer 401."""
    return {status: {"model": ErrorAnswer, "description": _ERRORS[status]} for status in (401, *statuses)}
