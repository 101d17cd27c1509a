"""The interface process: what answers HTTP and WebSockets. It loads no torch, and draws nothing."""

import mimetypes
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from serve import avatars, live_socket, videos
from serve.errors import ApiError, answer_error, error_body
from serve.jobs import Jobs
from serve.live_socket import Live
from serve.live_workers import MAIN, LiveWorkers
from serve.metrics import CONTENT_TYPE, Metrics
from serve.security import Guard
from serve.settings import ServeSettings
from shared.errors import MachineError, TalkheadError

PAGE = Path(__file__).with_name("page")
CODES = {404: "not_found", 405: "method_not_allowed"}
MESSAGES = {404: "there is nothing at {path}", 405: "{path} does not take {method}"}


def create_app(settings: ServeSettings, worker_main: str = MAIN, with_jobs: bool = True) -> FastAPI:
    """The ASGI application; its lifespan starts and ends the live workers, which run `worker_main` ("module:function"), and the
    jobs. Without `with_jobs` there are conversations only.

    `app.state` has settings, metrics, live (conversations), workers, and jobs or None.
    """
    metrics = Metrics()
    workers = LiveWorkers(settings, metrics, worker_main)
    app = FastAPI(title="talkhead", version=version("talkhead"), docs_url=None, redoc_url=None, lifespan=_lifespan,
                  description="Conversations with an avatar (WebSocket /v1/live) and videos made of sound.")
    app.state.settings, app.state.metrics, app.state.workers = settings, metrics, workers
    app.state.live, app.state.jobs = Live(settings, workers, metrics), Jobs(settings) if with_jobs else None
    for part in (live_socket, avatars, *([videos] if with_jobs else [])):
        app.include_router(part.router)
    _add_health(app)
    _add_page(app)
    app.add_exception_handler(ApiError, answer_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(TalkheadError, _refused)
    app.add_middleware(Guard, settings=settings)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if app.state.jobs is not None:
            await app.state.jobs.start()
            stack.push_async_callback(app.state.jobs.stop)
        await app.state.workers.start()
        stack.push_async_callback(app.state.workers.stop)
        stack.push_async_callback(app.state.live.drain, 0.0)
        yield


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", tags=["operation"], summary="Does the process live?")
    @app.get("/health", tags=["operation"], summary="As /healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["operation"], summary="Can a conversation be opened now?")
    async def readyz() -> dict[str, str]:
        if (error := app.state.live.unready()) is not None:
            raise ApiError(503, error.code, str(error), headers=error.headers)
        return {"status": "ready"}

    @app.get("/metrics", tags=["operation"], summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        known, jobs = app.state.metrics, app.state.jobs
        known.live_limit.set(app.state.workers.limit)
        if jobs is not None:
            for state, count in (await jobs.counts()).items():
                known.jobs.set(count, state)
            known.job_queue.set_totals(*jobs.queue_seconds)
            known.job.set_totals(*jobs.job_seconds)
        return Response(known.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    """The files of the page, read once: a name in a request is only compared with theirs."""
    files = {path.name: path.read_bytes() for path in PAGE.glob("*") if path.is_file()}

    def answer(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=mimetypes.guess_type(name)[0] or "application/octet-stream")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return answer("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        return answer(name)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path[:200]
    message = MESSAGES.get(status, str(error.detail)).format(path=path, method=request.method)
    return JSONResponse(error_body(status, CODES.get(status, "bad_request"), message), status, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    """422: the first field that is wrong, by name."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0])
    field = ".".join(str(part) for part in first["loc"][1:]) or None
    message = first["msg"] if field is None else f"{field}: {first['msg']}"
    return JSONResponse(error_body(422, "invalid_value", message, field), 422)


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, MachineError):
        return JSONResponse(error_body(503, "machine", str(error)), 503)
    return JSONResponse(error_body(400, "invalid_value", str(error)), 400)
