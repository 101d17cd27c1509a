"""`/v1/videos` in the shape of the `openai` client, `/v1/landmarks` and `/v1/edits`. docs/videos.md tells what clients need."""

import asyncio
import hashlib
import io
import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from PIL import ImageColor
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serve.avatars import known_avatar
from serve.errors import ApiError
from serve.job_worker import EDITS, rows_of
from serve.jobs import Jobs, Quick, new_id
from serve.journal import Job
from serve.settings import ServeSettings
from serve.uploads import Kind, Read, write_silence
from shared.errors import MachineError
from shared.files import remove
from shared.landmarks import N_LANDMARKS, SAMPLE_RATE

router = APIRouter(tags=["videos"])
MEDIA = {".mp4": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska", ".webm": "video/webm"}
OPAQUE, TRANSPARENT = (".mp4", ".mov", ".mkv"), (".webm", ".mov")  # endings, the usual one first
SMALLEST, LARGEST = 64, 4096  # pixels of a side
LONGEST_PROMPT, LONGEST_FIELD, LONGEST_KEY = 10_000, 65_536, 255
MOST_LISTED = 100
POLL_MS = "500"
ROW_BYTES = N_LANDMARKS * 3 * 4
_creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by Idempotency-Key


# -- fields of forms


def _text(value: str) -> str:
    if len(value) > LONGEST_PROMPT:
        raise ValueError(f"text of at most {LONGEST_PROMPT} characters, found {len(value)}")
    return value


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}, found {text[:40]!r}")
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}, found {text[:40]!r}")
        return int(text)

    return parse


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{' or '.join(names)}, found {text[:40]!r}")
        return text

    return parse


def _size(text: str) -> str:
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if found is None or not all(SMALLEST <= int(side) <= LARGEST and int(side) % 2 == 0 for side in found.groups()):
        raise ValueError(f"WIDTHxHEIGHT in even numbers from {SMALLEST} to {LARGEST}, such as 720x1280, found {text[:40]!r}")
    return text


def _background(text: str) -> str:
    if text in ("plate", "none") or re.fullmatch(r"#[0-9a-fA-F]{6}", text) or text.lower() in ImageColor.colormap:
        return text
    raise ValueError(f"plate, none or a colour such as white or #00ff00, found {text[:40]!r}")


def _fps(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,4})?|[0-9]{1,6}/1001", text) or not 1 <= _ratio(text) <= 120:
        raise ValueError(f"frames a second from 1 to 120, such as 25, 29.97 or 30000/1001, found {text[:40]!r}")
    return text


def _ratio(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


Fields = Mapping[str, tuple[Callable[[str], Any], Any]]  # how a field is read, and what it is if it is not given
SEED = (_whole(0, (1 << 32) - 1), 0)
EDIT_FIELDS: Fields = {"mouth_gain": (_number(-5, 5), None), "smile": (_number(-3, 3), None), "smooth": (_whole(0, 250), None),
                       "retime": (_number(0.1, 10), None), "blink": (_number(0, 20), None)}
VIDEO_FIELDS: Fields = {
    "model": (str, None), "prompt": (_text, None), "seconds": (_number(0.04, 86_400), None), "size": (_size, None),
    "background": (_background, "plate"), "format": (_choice("mp4", "mov", "mkv", "webm"), None),
    "label": (_choice("none", "start", "throughout"), "none"), "fps": (_fps, "25"), "seed": SEED,
    "liveliness": (_number(0, 3), 1.0), "head_motion": (_number(0, 1), 1.0), "poses": (_choice("loop", "still"), "loop"),
    **{name: field for name, field in EDIT_FIELDS.items() if name != "retime"}}
LANDMARK_FIELDS: Fields = {"model": (str, None), "seed": SEED, "liveliness": (_number(0, 3), 1.0)}
EDITS_FIELDS: Fields = {"model": (str, None), "seed": SEED, **EDIT_FIELDS}
SOUNDS, ARRAYS = ("input_reference", "audio"), ("input_reference", "landmarks")  # names of file fields
VIDEO_FILES = ("input_reference", "audio", "landmarks")


def _form(known: Fields, files: tuple[str, ...]) -> dict[str, Any]:
    """A form as the generated reference shows it."""
    properties: dict[str, Any] = {name: {"type": "string", "format": "binary"} for name in files}
    for name, (_, default) in known.items():
        properties[name] = {"type": "string"} if default is None else {"type": "string", "default": str(default)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


class Upload(NamedTuple):
    """A file of a request, kept under a name of the server's."""

    path: Path
    sha256: str


class Form(NamedTuple):
    """The fields of a request, all of them, and its files by field."""

    fields: dict[str, Any]
    files: dict[str, Upload]


async def read_form(request: Request, known: Fields, files: tuple[str, ...], stack: ExitStack) -> Form:
    """The form of a request; its files are there until `stack` closes. Raises ApiError for anything that is not as it should."""
    jobs: Jobs = request.app.state.jobs
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ApiError(415, "not_a_form", f"send multipart/form-data, found {kind[:60] or 'no Content-Type'}")
    try:
        async with request.form(max_files=4, max_fields=60, max_part_size=LONGEST_FIELD) as form:
            values: dict[str, Any] = {}
            kept: dict[str, Upload] = {}
            for name, value in form.multi_items():
                if name in values or name in kept:
                    raise ApiError(400, "field_twice", f"the field {name[:40]!r} stands twice", name[:40])
                if name not in known and name not in files:
                    raise ApiError(400, "unknown_field", f"there is no field {name[:40]!r}; there are: "
                                   f"{', '.join([*files, *known])}", name[:40])
                if isinstance(value, UploadFile) != (name in files):
                    what = "a file" if name in files else "text"
                    raise ApiError(400, "wrong_field", f"the field {name} should be {what}", name)
                if isinstance(value, UploadFile):
                    path = jobs.upload(new_id(), ".upload")
                    stack.callback(remove, path)
                    most = jobs.settings.upload_bytes
                    kept[name] = Upload(path, await asyncio.to_thread(_keep, value, path, most, name))
                else:
                    values[name] = _parsed(name, value, known[name][0])
    except HTTPException as error:
        raise ApiError(400, "bad_form", f"the form cannot be read: {str(error.detail)[:200]}") from error
    except OSError as error:
        raise ApiError(507, "server_disk", f"the server cannot keep the upload: {error.strerror}") from error
    return Form({name: default for name, (_, default) in known.items()} | values, kept)


def _parsed(name: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ApiError(400, "invalid_value", f"{name} should be {error}", name) from error


def _keep(upload: UploadFile, path: Path, most: int, name: str) -> str:
    """Copy an upload to `path`; its SHA-256."""
    digest, size = hashlib.sha256(), 0
    upload.file.seek(0)
    with open(path, "wb") as file:
        while piece := upload.file.read(1 << 20):
            size += len(piece)
            if size > most:
                raise ApiError(413, "upload_too_large", f"{name} has over {most} bytes, which is the most that is taken", name)
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


# -- videos


@router.post("/v1/videos", openapi_extra=_form(VIDEO_FIELDS, VIDEO_FILES))
async def create_video(request: Request) -> JSONResponse:
    """Make a video of an avatar that speaks `input_reference`: sound or a landmark `.npy`; or `audio` and `landmarks`, both."""
    jobs: Jobs = request.app.state.jobs
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= LONGEST_KEY:
        raise ApiError(400, "bad_idempotency_key", f"Idempotency-Key should have 1 to {LONGEST_KEY} characters, found {len(key)}")
    lock = asyncio.Lock() if key is None else _creating.setdefault(key, asyncio.Lock())
    async with lock:
        if key is None or await jobs.of_key(key) is None:
            await jobs.refuse_if_full()
        with ExitStack() as stack:
            return _answer(jobs, await _create(request, key, stack))


async def _create(request: Request, key: str | None, stack: ExitStack) -> Job:
    jobs: Jobs = request.app.state.jobs
    settings: ServeSettings = request.app.state.settings
    form = await read_form(request, VIDEO_FIELDS, VIDEO_FILES, stack)
    fields, files = form.fields, form.files
    digest = hashlib.sha256(json.dumps([fields, {name: file.sha256 for name, file in files.items()}], sort_keys=True)
                            .encode()).hexdigest()
    if key is not None and (before := await jobs.of_key(key)) is not None:
        if before.digest != digest:
            raise ApiError(422, "idempotency_key_reused", "another request was made under this Idempotency-Key; take a new one")
        return before
    avatar = await known_avatar(settings, fields["model"])
    ending = _ending(fields)
    if not files:
        raise ApiError(400, "missing_file", "input_reference should be a file with sound or landmarks", "input_reference")
    if len(files) > 1 and "input_reference" in files:
        raise ApiError(400, "too_many_files", "give input_reference, or audio and landmarks", "input_reference")
    id = new_id()
    read = await _read_files(jobs, id, files, stack)
    length, end = read["landmarks" if "landmarks" in read else "sound"].seconds, fields["seconds"]
    if "sound" not in read:
        await asyncio.to_thread(_silence, jobs.upload(id, ".wav"), length)
    options = {name: fields[name] for name in ("background", "label", "fps", "seed", "liveliness", "head_motion", "poses",
                                               *(name for name in EDITS if name in fields))}
    seconds = round(length if end is None else min(end, length), 3)
    task = {"options": options, "size": fields["size"], "end": end, "seconds": seconds, "sound": ".wav",
            "landmarks": ".npy" if "landmarks" in read else None}
    job = await jobs.create(Job(id, avatar["name"], task, ending, time.time(), seconds,
                                fields["size"] or f"{avatar['width']}x{avatar['height']}", fields["prompt"], key, digest))
    stack.pop_all()
    for upload in files.values():
        remove(upload.path)
    return job


def _ending(fields: dict[str, Any]) -> str:
    """The ending of a video's file. Raises ApiError where the format holds no transparency, or nothing else."""
    able = TRANSPARENT if fields["background"] == "none" else OPAQUE
    ending = able[0] if fields["format"] is None else f".{fields['format']}"
    if ending not in able:
        names = " or ".join(name[1:] for name in able)
        raise ApiError(400, "invalid_value", f"format should be {names} for this background, found {ending[1:]!r}", "format")
    return ending


async def _read_files(jobs: Jobs, id: str, files: dict[str, Upload], stack: ExitStack) -> dict[str, Read]:
    """Check the files of a request and keep what they hold as the uploads of the job `id`."""
    read: dict[str, Read] = {}
    for ending in (".wav", ".npy"):
        stack.callback(remove, jobs.upload(id, ending))
    kinds: dict[str, Kind] = {"input_reference": "any", "audio": "sound", "landmarks": "landmarks"}
    for name, upload in files.items():
        made = jobs.upload(id, ".checked")
        stack.callback(remove, made)
        found = await jobs.uploads.read(upload.path, made, kinds[name], name)
        made.rename(jobs.upload(id, ".wav" if found.kind == "sound" else ".npy"))
        read[found.kind] = found
    return read


def _silence(path: Path, seconds: float) -> None:
    try:
        write_silence(path, seconds)
    except MachineError as error:
        raise ApiError(507, "server_disk", "the server cannot keep the upload: its disk refuses") from error


def video_object(jobs: Jobs, job: Job) -> dict[str, Any]:
    """A job as clients see it."""
    status = {"cancelled": "failed", "expired": "completed"}.get(job.state, job.state)
    error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
    return {"id": job.id, "object": "video", "model": job.avatar, "status": status, "progress": jobs.progress(job),
            "created_at": int(job.created), "completed_at": int(job.finished) if job.finished and status == "completed" else None,
            "expires_at": math.ceil(job.expires) if job.expires and status == "completed" else None,
            "seconds": f"{job.seconds:g}", "size": job.size, "prompt": job.prompt, "error": error, "warnings": job.warnings}


def _answer(jobs: Jobs, job: Job) -> JSONResponse:
    return JSONResponse(video_object(jobs, job), headers={"openai-poll-after-ms": POLL_MS} if job.waiting else None)


async def _job(request: Request, id: str) -> Job:
    jobs: Jobs = request.app.state.jobs
    job = await jobs.get(id)
    if job is None:
        raise ApiError(404, "not_found", f"there is no video {id[:80]!r}; it may have been deleted, or have expired", "video_id")
    return job


@router.get("/v1/videos")
async def list_videos(request: Request, after: str | None = None, limit: str = "20", order: str = "desc") -> dict[str, Any]:
    """Videos in the order of their creation, `limit` (1 to 100) behind the one whose id is `after`; `order` asc or desc."""
    jobs: Jobs = request.app.state.jobs
    most = _parsed("limit", limit, _whole(1, MOST_LISTED))
    _parsed("order", order, _choice("asc", "desc"))
    found = await jobs.page(after, most + 1, order == "desc")
    if found is None:
        raise ApiError(404, "not_found", f"there is no video {str(after)[:80]!r} to go on behind", "after")
    data = [video_object(jobs, job) for job in found[:most]]
    return {"object": "list", "data": data, "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None, "has_more": len(found) > most}


@router.get("/v1/videos/{video_id}")
async def get_video(request: Request, video_id: str) -> JSONResponse:
    """How far a video is."""
    return _answer(request.app.state.jobs, await _job(request, video_id))


@router.delete("/v1/videos/{video_id}")
async def delete_video(request: Request, video_id: str) -> dict[str, Any]:
    """Remove a video; one that is not finished is cancelled first."""
    jobs: Jobs = request.app.state.jobs
    await _job(request, video_id)
    await jobs.delete(video_id)
    return {"id": video_id, "object": "video.deleted", "deleted": True}


@router.post("/v1/videos/{video_id}/cancel")
async def cancel_video(request: Request, video_id: str) -> JSONResponse:
    """Stop a video that is not finished; it then has failed with the code "cancelled"."""
    jobs: Jobs = request.app.state.jobs
    before = await _job(request, video_id)
    if not before.waiting and before.state != "cancelled":
        raise ApiError(409, "already_finished", f"the video is {before.state} already, so it cannot be cancelled", "video_id")
    job = await jobs.cancel(video_id)
    if job is None:
        raise ApiError(404, "not_found", "the video has been deleted meanwhile", "video_id")
    return _answer(jobs, job)


@router.get("/v1/videos/{video_id}/content")
@router.head("/v1/videos/{video_id}/content", include_in_schema=False)
async def video_content(request: Request, video_id: str, variant: str = "video") -> FileResponse:
    """The finished video; ranges are served."""
    jobs: Jobs = request.app.state.jobs
    _parsed("variant", variant, _choice("video"))
    job = await _job(request, video_id)
    if job.waiting:
        raise ApiError(409, "not_ready", f"the video is {job.state} ({jobs.progress(job)} %); wait until it is completed",
                       "video_id", {"Retry-After": "1"})
    path = jobs.result(job)
    if job.state == "expired" or job.state == "completed" and not path.is_file():
        raise ApiError(410, "expired", "the video has expired and was removed; make it again", "video_id")
    if job.state != "completed":
        raise ApiError(409, job.error_code or "failed", f"there is no video: {job.error_message}", "video_id")
    return FileResponse(path, media_type=MEDIA[job.ending], filename=path.name, headers={"Cache-Control": "private, no-cache"})


@router.get("/v1/videos/{video_id}/events")
async def video_events(request: Request, video_id: str) -> Response:
    """Server-sent events: the video now, and again whenever it changes, until it has ended. With `Last-Event-ID` only what
    differs from that event."""
    jobs: Jobs = request.app.state.jobs
    job = await _job(request, video_id)
    last = request.headers.get("last-event-id", "")
    if not job.waiting and last == event_id(jobs, job):
        return Response(status_code=204)  # tells an EventSource not to come again
    return StreamingResponse(_events(jobs, video_id, last), media_type="text/event-stream",
                             headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _events(jobs: Jobs, id: str, last: str) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    async for job in jobs.watch(id):
        if job is None:
            yield ": still here\n\n"
            continue
        number = event_id(jobs, job)
        if number != last:
            last, video = number, video_object(jobs, job)
            yield f"id: {number}\nevent: video.{video['status']}\ndata: {json.dumps(video)}\n\n"


def event_id(jobs: Jobs, job: Job) -> str:
    """Tells one event of a video from the others; the same after a restart of the server."""
    return f"{job.tries}-{job.state}-{jobs.progress(job)}"


# -- landmarks and edits, for which a client waits


class _Holding:
    """A response that closes `stack` when it has been sent, or when nobody is there to take it."""

    stack: ExitStack

    async def __call__(self, *connection: Any) -> None:
        with self.stack:
            await super().__call__(*connection)  # type: ignore[misc]


class _Rows(_Holding, StreamingResponse):
    pass


class _File(_Holding, FileResponse):
    pass


@router.post("/v1/landmarks", openapi_extra=_form(LANDMARK_FIELDS, SOUNDS))
async def landmarks(request: Request) -> Response:
    """Sound -> the landmarks with which an avatar speaks it, a `.npy` (T,68,3) float32 whose rows are sent as they are made."""
    jobs: Jobs = request.app.state.jobs
    with ExitStack() as stack:
        form = await read_form(request, LANDMARK_FIELDS, SOUNDS, stack)
        avatar = await known_avatar(request.app.state.settings, form.fields["model"])
        read, path = await _read_one(jobs, form, "sound", stack)
        options = {"seed": form.fields["seed"], "liveliness": form.fields["liveliness"]}
        task = stack.enter_context(jobs.quickly("landmarks", options=options, sound=str(path), **_named(jobs, avatar["name"])))
        first = await _next(task)
        rows = rows_of(read.length)
        response = _Rows(_npy(task, rows, first), media_type="application/octet-stream", headers=_as_file("landmarks.npy"))
        response.headers["Content-Length"] = str(len(_header(rows)) + rows * ROW_BYTES)
        response.stack = stack.pop_all()
        return response


async def _npy(task: Quick, rows: int, message: dict[str, Any]) -> AsyncIterator[bytes]:
    """The pieces of a `.npy` of so many rows, as the worker has made them."""
    yield _header(rows)
    with open(task.task["output"], "rb") as file:
        while True:
            while piece := file.read(1 << 18):
                yield piece
            if message["tell"] == "done":
                return
            message = await _next(task)


@router.post("/v1/edits", openapi_extra=_form(EDITS_FIELDS, ARRAYS))
async def edits(request: Request) -> Response:
    """Landmarks -> edited landmarks, a `.npy`: mouth_gain, smile, smooth, retime, blink. `model` lends its face at rest."""
    jobs: Jobs = request.app.state.jobs
    with ExitStack() as stack:
        form = await read_form(request, EDITS_FIELDS, ARRAYS, stack)
        named = _named(jobs, None)
        if form.fields["model"]:
            named = _named(jobs, (await known_avatar(request.app.state.settings, form.fields["model"]))["name"])
        if all(form.fields[name] is None for name in EDITS):
            raise ApiError(400, "no_edit", f"name an edit: {', '.join(EDITS)}")
        _, path = await _read_one(jobs, form, "landmarks", stack)
        options = {name: form.fields[name] for name in ("seed", *EDITS)}
        task = stack.enter_context(jobs.quickly("edit", options=options, landmarks=str(path), **named))
        while (await _next(task))["tell"] != "done":
            pass
        response = _File(task.task["output"], media_type="application/octet-stream", headers=_as_file("landmarks.npy"))
        response.stack = stack.pop_all()
        return response


async def _read_one(jobs: Jobs, form: Form, kind: Kind, stack: ExitStack) -> tuple[Read, Path]:
    """The one file of a form, checked, and where it then lies."""
    if len(form.files) != 1:
        raise ApiError(400, "missing_file" if not form.files else "too_many_files",
                       f"give one file, {' or '.join(SOUNDS if kind == 'sound' else ARRAYS)}", "input_reference")
    (name, upload), = form.files.items()
    path = jobs.upload(new_id(), ".wav" if kind == "sound" else ".npy")
    stack.callback(remove, path)
    return await jobs.uploads.read(upload.path, path, kind, name, SAMPLE_RATE), path


async def _next(task: Quick) -> dict[str, Any]:
    """The next message about a task. Raises ApiError if it says that nothing came of it."""
    message = await task.heard.get()
    if message["tell"] == "failed":
        status = {"server_machine": 507, "out_of_memory": 503, "server_fault": 500}.get(message["code"], 400)
        raise ApiError(status, message["code"], message["message"])
    if message["tell"] in ("died", "cancelled"):
        raise ApiError(503, "worker_died", "the process at work on it ended; try again", headers={"Retry-After": "1"})
    return message


def _named(jobs: Jobs, name: str | None) -> dict[str, Any]:
    return {"avatar": name, "avatar_path": None if name is None else jobs.settings.avatars[name]}


def _header(rows: int) -> bytes:
    header = io.BytesIO()
    shape = (rows, N_LANDMARKS, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _as_file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
