"""The job interface by itself, as a server of its own: python -m tests.serve.small_app SETTINGS_JSON, which prints its port."""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from serve import avatars, job_worker, videos
from serve.errors import ApiError, answer_error
from serve.jobs import Jobs, WorkerMain
from serve.settings import ServeSettings


def small_app(settings: ServeSettings, main: WorkerMain = job_worker.main) -> FastAPI:
    """The routes of videos and avatars with their jobs."""
    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.settings, app.state.jobs = settings, Jobs(settings, main)
        await app.state.jobs.start()
        yield
        await app.state.jobs.stop()

    app = FastAPI(lifespan=life)
    app.add_exception_handler(ApiError, answer_error)
    app.include_router(videos.router)
    app.include_router(avatars.router)
    return app


def main() -> None:
    """Serve on any free port of 127.0.0.1."""
    settings = ServeSettings.from_json(sys.argv[1])
    with socket.create_server((settings.host, settings.port)) as listener:
        print(listener.getsockname()[1], flush=True)
        server = uvicorn.Server(uvicorn.Config(small_app(settings), log_level="warning", timeout_graceful_shutdown=5))
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
