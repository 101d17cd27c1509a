"""`/v1/avatars` and `/v1/models`: which avatars there are. Read from their manifests; no part of an avatar is loaded."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from serve.errors import ApiError
from serve.settings import ServeSettings
from shared.avatar_file import open_avatar_file
from shared.errors import TalkheadError
from shared.files import read_json
from shared.landmarks import FPS

router = APIRouter(tags=["avatars"])
PARTS = ("stage1", "stage2", "torso")


def describe_avatar(name: str, path: Path) -> dict[str, Any]:
    """What `/v1/avatars/{name}` answers; `person` is the name in the avatar itself. Raises TalkheadError."""
    if path.is_file():
        with open_avatar_file(path) as file:
            known = file.manifest
            parts = [part for part in PARTS if f"{part}.safetensors" in known.files]
            values = {"name": known.name, "width": known.width, "height": known.height, "figures": known.figures,
                      "consent": None if known.consent is None else vars(known.consent)}
    else:
        values = read_json(path / "avatar.json")
        parts = [part for part in PARTS if (path / f"{part}.safetensors").is_file()]
    return {"object": "avatar", "name": name, "person": values.get("name"), "created_at": _changed(path),
            "width": values.get("width"), "height": values.get("height"), "fps": FPS, "parts": parts,
            "figures": values.get("figures") or {}, "consent": values.get("consent")}


async def known_avatar(settings: ServeSettings, name: str | None) -> dict[str, Any]:
    """The description of the avatar `name`, None being the first. Raises ApiError 404 for one that the server does not have, 503
    for one that cannot be read now."""
    chosen = next(iter(settings.avatars), None) if name in (None, "") else name
    if chosen not in settings.avatars:
        names = ", ".join(list(settings.avatars)[:20])
        raise ApiError(404, "model_not_found", f"there is no avatar {str(name)[:80]!r} here; there are: {names}", "model")
    try:
        return await asyncio.to_thread(describe_avatar, chosen, Path(settings.avatars[chosen]))
    except (TalkheadError, OSError) as error:
        text = str(error).replace(settings.avatars[chosen], chosen)
        raise ApiError(503, "avatar_unreadable", f"the avatar cannot be read: {text}", "model") from error


@router.get("/v1/avatars")
async def avatars(request: Request) -> dict[str, Any]:
    """All avatars, with picture size, trained parts, measured figures and consent; the first is used where none is named."""
    settings: ServeSettings = request.app.state.settings
    return {"object": "list", "data": [await known_avatar(settings, name) for name in settings.avatars]}


@router.get("/v1/avatars/{name}")
async def avatar(request: Request, name: str) -> dict[str, Any]:
    """One avatar."""
    return await known_avatar(request.app.state.settings, name)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The avatars as models, for clients that ask for these."""
    settings: ServeSettings = request.app.state.settings
    return {"object": "list", "data": [_model(name, Path(path)) for name, path in settings.avatars.items()]}


@router.get("/v1/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One avatar as a model."""
    settings: ServeSettings = request.app.state.settings
    await known_avatar(settings, name)
    return _model(name, Path(settings.avatars[name]))


def _model(name: str, path: Path) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _changed(path), "owned_by": "talkhead"}


def _changed(path: Path) -> int:
    try:
        return int((path if path.is_file() else path / "avatar.json").stat().st_mtime)
    except OSError:
        return 0
