"""The routes under /v1."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal, Optional

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from opensora.serve.errors import not_found
from opensora.serve.requests import VideoRequest, resolve
from opensora.serve.responses import (
    CommandLine,
    Deleted,
    Estimate,
    ServiceDescription,
    UploadedFile,
    VideoJob,
    VideoList,
    errors,
)
from opensora.serve.store import FINAL
from opensora.serve.studio import Studio, upload_name
from opensora.serve.thumbnails import thumbnail
from opensora.serve.uploads import Uploads

PREVIEW_TYPE = "image/webp"
MEDIA_TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".png": "image/png", ".json": "application/json"}
EVENT_STREAM = {"content": {"text/event-stream": {}}, "description": "events: job, deleted, service"}
CACHED = {"Cache-Control": "private, max-age=86400, immutable"}
LONGEST_LIST = 200
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


def make_router(studio: Studio) -> APIRouter:
    """The routes of a studio. Answers are made by it; the response models only describe them."""
    router, uploads = APIRouter(prefix="/v1"), Uploads(studio)

    @router.post(
        "/videos",
        status_code=201,
        response_class=JSONResponse,
        responses={201: {"model": VideoJob}, **errors(403, 404, 413, 415, 422, 429, 507)},
        summary="Create a video or an image",
    )
    async def create(body: VideoRequest) -> Response:
        job = await studio.submit(resolve(body, studio.catalog, studio.options), body.priority)
        return JSONResponse(studio.view(job), 201, {"Location": f"/v1/videos/{job.id}"})

    @router.get(
        "/videos", responses={200: {"model": VideoList}, **errors(404, 422)}, summary="List videos, newest first"
    )
    async def list_videos(
        limit: int = Query(50, ge=1, le=LONGEST_LIST),
        after: Optional[str] = Query(None, max_length=100, description="id of the last video of the page before"),
        query: str = Query("", max_length=2000, description="text in the prompt"),
        status: Optional[Status] = None,
    ) -> Response:
        before = studio.job(after).number if after else None
        jobs = studio.store.jobs(limit + 1, before, query, status)
        return JSONResponse({"object": "list", "data": studio.views(jobs[:limit]), "has_more": len(jobs) > limit})

    @router.get("/videos/{video_id}", responses={200: {"model": VideoJob}, **errors(404)}, summary="A video's state")
    async def get(video_id: str) -> Response:
        return JSONResponse(studio.view(studio.job(video_id)))

    @router.delete(
        "/videos/{video_id}",
        responses={200: {"model": Deleted}, **errors(403, 404, 409)},
        summary="Remove a video and its files",
    )
    async def delete(video_id: str) -> Response:
        studio.remove(video_id)
        return JSONResponse({"id": video_id, "deleted": True})

    @router.post(
        "/videos/{video_id}/cancel", responses={200: {"model": VideoJob}, **errors(403, 404)}, summary="Cancel a video"
    )
    async def cancel(video_id: str) -> Response:
        return JSONResponse(studio.view(studio.cancel(video_id)))

    @router.api_route(
        "/videos/{video_id}/content",
        methods=["GET", "HEAD"],
        response_class=FileResponse,
        responses={200: {"content": {"video/mp4": {}, "image/jpeg": {}, "application/json": {}}}, **errors(404, 409)},
        summary="The video, its thumbnail, or the record of how it was made; with Range requests",
    )
    async def content(
        video_id: str, variant: Literal["video", "thumbnail", "metadata"] = "video", download: bool = False
    ) -> Response:
        job = studio.job(video_id)
        path = studio.result(job)
        if variant == "thumbnail":
            path = await asyncio.to_thread(thumbnail, path)
        elif variant == "metadata":
            path = path.with_suffix(".json")
        return _file(path, f"{video_id}{path.suffix}" if download else None)

    @router.get(
        "/videos/{video_id}/preview",
        response_class=FileResponse,
        responses={200: {"content": {PREVIEW_TYPE: {}}}, **errors(404)},
        summary="The latest preview of a video that is being made, an animated WebP",
    )
    async def preview(video_id: str) -> Response:
        path = studio.preview(studio.job(video_id))
        if path is None:
            raise not_found("preview")
        try:  # read at once: the worker may replace or remove it
            return Response(path.read_bytes(), media_type=PREVIEW_TYPE)
        except FileNotFoundError as error:
            raise not_found("preview") from error

    @router.get(
        "/videos/{video_id}/command",
        responses={200: {"model": CommandLine}, **errors(404, 409)},
        summary="A command line that makes the same video",
    )
    async def command(video_id: str) -> Response:
        return JSONResponse({"command": studio.command(studio.job(video_id))})

    @router.get(
        "/videos/{video_id}/events",
        response_class=StreamingResponse,
        responses={200: EVENT_STREAM, **errors(404, 503)},
        summary="The states of a video until it has ended, as server-sent events",
    )
    async def events_of(video_id: str) -> Response:
        job = studio.job(video_id)
        studio.broker.check_room()
        first = [("job", job.id, studio.view(job))]
        return _events(studio.broker.stream(first, job.id, ends=job.status in FINAL))

    @router.get(
        "/events",
        response_class=StreamingResponse,
        responses={200: EVENT_STREAM, **errors(503)},
        summary="The states of all videos and of the service, as server-sent events",
    )
    async def events(request: Request) -> Response:
        studio.broker.check_room()
        return _events(studio.broker.stream(studio.first_events(_moment(request))))

    @router.post(
        "/files",
        status_code=201,
        responses={201: {"model": UploadedFile}, **errors(403, 413, 415, 422, 429, 507)},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["file"],
                            "properties": {"file": {"type": "string", "format": "binary"}},
                        }
                    }
                },
            }
        },
        summary="Upload an image or a video; needs the header X-Requested-With: opensora",
    )
    async def upload(request: Request) -> Response:
        found = await uploads.receive(request)
        return JSONResponse({name: getattr(found, name) for name in UploadedFile.model_fields}, 201)

    @router.api_route(
        "/files/{file_id}/content",
        methods=["GET", "HEAD"],
        response_class=FileResponse,
        responses={200: {"content": {"image/png": {}, "video/mp4": {}}}, **errors(404)},
        summary="The decoded copy of an upload",
    )
    async def upload_content(file_id: str) -> Response:
        found = studio.upload(file_id)
        return _file(studio.upload_folder(found.id) / upload_name(found.kind))

    @router.post(
        "/estimate",
        responses={200: {"model": Estimate}, **errors(403, 413, 415, 422, 429)},
        summary="Memory and time of a video, before it is made",
    )
    async def estimate(body: VideoRequest) -> Response:
        spec = resolve(body, studio.catalog, studio.options)
        pids = [worker.process.pid for worker in studio.workers.all if worker.process is not None]
        return JSONResponse(await studio.estimates.estimate(spec, pids))

    @router.get(
        "/service",
        responses={200: {"model": ServiceDescription}, **errors()},
        summary="Models, their defaults and limits, and the state of the service",
    )
    async def service() -> Response:
        return JSONResponse(studio.service())

    return router


def _file(path: Path, name: Optional[str] = None) -> FileResponse:
    if not path.is_file():
        raise not_found("file of this video")
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], filename=name, headers=CACHED)


def _events(texts: Any) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back
    return StreamingResponse(texts, media_type="text/event-stream", headers=headers)


def _moment(request: Request) -> Optional[float]:
    """The time of the last event that a reader got before it lost the connection."""
    try:
        return float(request.headers.get("last-event-id", ""))
    except ValueError:
        return None
