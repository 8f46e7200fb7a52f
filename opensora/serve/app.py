"""The web application: routes, the page, and how errors are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

import opensora
from opensora.serve.errors import ApiError, not_found
from opensora.serve.responses import Health, errors
from opensora.serve.routes import make_router
from opensora.serve.security import COOKIE, SESSION_SECONDS, Security, Sessions
from opensora.serve.studio import Studio
from opensora.utils.logs import logger

PAGE = Path(__file__).with_name("page")
WRONG_TOKEN_SECONDS = 0.5  # before the answer to a wrong token
CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


class PageFiles(StaticFiles):
    """Files that browsers keep, and ask for anew only if they have changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=1000)


def make_app(studio: Studio) -> Security:
    """The ASGI application of a studio, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await studio.start()
        try:
            yield
        finally:
            await studio.stop()

    app = FastAPI(
        title="opensora studio",
        summary="Makes videos from text, and from text and given frames.",
        version=opensora.__version__,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        lifespan=lifespan,
    )
    sessions = Sessions(studio.options.token)
    security = Security(app, studio.options, sessions)
    app.include_router(make_router(studio))
    _add_error_answers(app)

    @app.get("/healthz", response_model=Health, summary="Whether the service answers")
    async def health() -> Any:
        return {"status": "ok"}

    @app.post("/session", status_code=204, responses=errors(403, 429), summary="Sign in with the token; sets a cookie")
    async def sign_in(body: SignIn, request: Request) -> Response:
        client = request.client.host if request.client else ""
        if sessions.needed and not security.sign_in(body.token, client):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            raise ApiError(401, "unauthorized", "this is not the token of the service")
        answer = Response(status_code=204)
        if sessions.needed:
            answer.set_cookie(
                COOKIE,
                sessions.cookie(),
                max_age=SESSION_SECONDS,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return answer

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        if not (PAGE / "index.html").is_file():
            raise not_found("page")
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", PageFiles(directory=PAGE), name="page")
    return security


def _add_error_answers(app: FastAPI) -> None:
    """All errors have the same form."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [part for part in first["loc"] if part not in ("body", "query", "path")]
        if first["type"] == "json_invalid":
            return JSONResponse(ApiError(400, "invalid_json", "the body is not JSON").body(), 400)
        param = next((part for part in place if isinstance(part, str)), None)
        name = ".".join(map(str, place)) or "the body"
        message = f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        if first["type"] == "extra_forbidden":
            message = f"there is no field {name!s:.100}"
        return JSONResponse(ApiError(422, "invalid_request", message, param).body(), 422)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "error")
        return JSONResponse(
            ApiError(error.status_code, code, str(error.detail)).body(), error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        logger.error(f"{request.method} {request.url.path} failed", exc_info=error)
        return JSONResponse(ApiError(500, "internal_error", "an error of the service; its log says more").body(), 500)
