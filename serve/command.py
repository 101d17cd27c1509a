"""`talkhead serve`: avatars as a service."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from serve.protocol import CODECS
from serve.settings import ServeSettings
from shared.errors import TalkheadError
from shared.options import FiniteFloat
from talkhead.commands.options import PATH, device_option, mark_option
from talkhead.commands.runner import when_stopped

ENDED = "Stopped. Jobs that were not finished are continued when it is started again."


@click.command()
@click.argument("avatars", nargs=-1, required=True, type=PATH, metavar="AVATAR...|FOLDER")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; other machines reach any but the "
              "default, so these need --token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--token", envvar="TALKHEAD_TOKEN", show_envvar=True, help="What clients have to send; best in the variable, as a "
              "command line can be read by others on this machine.")
@click.option("--tls-cert", type=PATH, help="Certificate (PEM, with its chain), for https.")
@click.option("--tls-key", type=PATH, help="Its key (PEM, no password).")
@click.option("--origin", "origins", multiple=True, metavar="URL", help="Another name of this service, or a site whose pages may "
              "use it, such as https://avatars.example.org; may be repeated.")
@click.option("--folder", type=PATH, help="Where jobs, uploads and finished videos are kept.  [default: "
              "~/.local/state/talkhead/serve]")
@device_option
@click.option("--live-workers", type=click.IntRange(1, 64), help="Processes that draw conversations.  [default: one a "
              "processor, at most 4; on a GPU one for two processors, at most 8]")
@click.option("--conversations", type=click.IntRange(1, 10_000), help="That may be open at once.  [default: as many as "
              "the workers, measuring as they start, expect to draw]")
@click.option("--job-workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes that make videos.")
@click.option("--queued-jobs", default=1000, show_default=True, type=click.IntRange(1, 100_000), help="Videos that may wait.")
@mark_option
@click.option("--upload-mb", default=500.0, show_default=True, type=FiniteFloat(0.1, 100_000), help="Largest upload.")
@click.option("--upload-minutes", default=60.0, show_default=True, type=FiniteFloat(0.1, 10_000), help="Longest sound.")
@click.option("--keep-hours", default=24.0, show_default=True, type=FiniteFloat(0.01, 100_000), help="For which finished videos "
              "are kept.")
@click.option("--keep-gb", default=20.0, show_default=True, type=FiniteFloat(0.01, 1_000_000), help="Of finished videos in all; "
              "the oldest go first.")
@click.option("--drain-seconds", default=5.0, show_default=True, type=FiniteFloat(0, 3600), help="That conversations have when "
              "the system asks the service to end.")
@click.option("--access-log", is_flag=True, help="Print each request.")
def serve(avatars: tuple[Path, ...], host: str, port: int, token: str | None, tls_cert: Path | None, tls_key: Path | None,
          origins: tuple[str, ...], folder: Path | None, device: str, live_workers: int | None, conversations: int | None,
          job_workers: int, queued_jobs: int, mark: bool, upload_mb: float, upload_minutes: float, keep_hours: float,
          keep_gb: float, drain_seconds: float, access_log: bool) -> None:
    """Talk to AVATARs: a web page, live conversations over a WebSocket, videos over HTTP.

    An avatar is named after its file; of a FOLDER all avatars in it are served. Ctrl-C ends.

    \b
    talkhead serve me.avatar
    talkhead serve avatars/ --port 9000 --conversations 4
    TALKHEAD_TOKEN=$(openssl rand -hex 16) talkhead serve me.avatar --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
    """
    settings = ServeSettings(
        avatars=find_avatars(avatars), folder=str(folder.absolute() if folder else default_folder()), host=host, port=port,
        token=token or None, tls_cert=str(tls_cert) if tls_cert else None, tls_key=str(tls_key) if tls_key else None,
        origins=origins, device=device, live_workers=live_workers, conversations=conversations, job_workers=job_workers,
        queued_jobs=queued_jobs, mark=mark, upload_bytes=int(upload_mb * 1e6), upload_seconds=upload_minutes * 60,
        keep_hours=keep_hours, keep_bytes=int(keep_gb * 1e9), drain_seconds=drain_seconds)
    when_stopped(ENDED)
    run(settings, access_log)


def run(settings: ServeSettings, access_log: bool = False) -> None:
    """Serve until asked to end. Raises TalkheadError for what keeps it from starting."""
    require_extra()
    import logging

    from serve.app import create_app
    from serve.security import check_settings
    from serve.server import Server, address, check_tls, listen
    from shared.lock import lock_folder

    check_settings(settings)
    check_tls(settings)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO if access_log else logging.ERROR)
    # what clients do wrong fills no log: a broken request, text that is not UTF-8, a handshake that was refused
    wrong = ("Invalid ", "ASGI callable returned without completing handshake")
    logging.getLogger("uvicorn.error").addFilter(lambda record: not record.getMessage().startswith(wrong))
    with lock_folder(settings.root), listen(settings.host, settings.port) as listener:
        check_avatars(settings)
        url = address(settings, listener)
        for line in start_message(settings, url):
            click.echo(line)
        server = Server(create_app(settings), access_log, lambda: click.echo(f"  Ready: {url}"))
        server.run(sockets=[listener])
    if server.hopeless:
        raise TalkheadError("the live workers end while they load the avatars; what they said stands above")
    click.echo(ENDED)


def start_message(settings: ServeSettings, url: str) -> Iterator[str]:
    """Lines that say what is served and where, and what plain http takes away."""
    from serve.security import is_loopback

    yield f"talkhead serve: {url}"
    yield f"  avatars  {', '.join(settings.avatars)}"
    yield f"  jobs     {settings.folder}; videos are kept for {settings.keep_hours:g} h"
    yield f"  access   {'the token is asked for' if settings.token else 'everybody on this machine, without a token'}"
    if not settings.tls_cert and not is_loopback(settings.host):
        yield ("  http     plain: browsers on other machines get no microphone and no video decoder, only JPEG pictures, and "
               "whoever is on the way reads along; --tls-cert and --tls-key mend it, or an SSH tunnel: docs/serve.md")
    elif not settings.tls_cert:
        port = url.rpartition(":")[2]
        yield f"  remote   from another machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE, then open {url} there"
    yield "  The avatars are being loaded …"


def find_avatars(paths: Iterable[Path]) -> dict[str, str]:
    """{name: absolute path} of avatars and of all avatars in folders. Raises TalkheadError for none, and for two of one name."""
    found: dict[str, Path] = {}
    for path in paths:
        for avatar in _avatars_at(path):
            name = avatar.absolute().name.removesuffix(".avatar")
            if not name or not name.isprintable() or len(name) > 80:
                raise TalkheadError(f"{avatar}: an avatar that is served should have a name of 1 to 80 printable characters; "
                                    "rename it")
            if name in found and not found[name].samefile(avatar):
                raise TalkheadError(f"{found[name]} and {avatar} have one name, {name!r}, by which clients ask for them; "
                                    "rename one")
            found.setdefault(name, avatar)
    return {name: str(path.absolute()) for name, path in found.items()}


def _avatars_at(path: Path) -> list[Path]:
    if not path.exists():
        raise TalkheadError(f"{path} does not exist; name an avatar, or a folder of avatars")
    if path.is_file() or (path / "avatar.json").is_file():
        return [path]
    inside = sorted(child for child in path.iterdir() if not child.name.startswith(".")
                    and (child.suffix == ".avatar" or (child / "avatar.json").is_file()))
    if not inside:
        raise TalkheadError(f"{path}: there is no avatar in this folder; name an avatar, or a folder of avatars")
    return inside


def default_folder() -> Path:
    """Where jobs are kept unless the user says. Raises TalkheadError where there is no place for a private folder."""
    from shared.machine import state_folder

    folder = state_folder("serve")
    if folder is None:
        raise TalkheadError("there is no folder that only you can write into for jobs and uploads; name one with --folder")
    return folder


def require_extra() -> None:
    """Raise TalkheadError unless the libraries of the interface are installed."""
    from talkhead.doctor import lacking_for_serve

    if lacking := lacking_for_serve():
        raise TalkheadError(f"`talkhead serve` needs {' and '.join(lacking)}; install what it needs with `pip install "
                            "'talkhead[serve]'`")


def check_avatars(settings: ServeSettings) -> None:
    """Raise TalkheadError for an avatar that cannot speak. In a process of its own, as this one loads no codecs and no torch."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(_check_avatars, list(settings.avatars.values())).result()


def _check_avatars(paths: list[str]) -> None:
    from shared.avatar import PARTS, Avatar
    from talkhead.commands.runner import plain_warnings

    with plain_warnings():
        for path in paths:
            Avatar(path).require(*PARTS)


@click.command()
@click.argument("avatars", metavar="AVATAR...", nargs=-1, required=True, type=PATH)
@device_option
@click.option("--live-workers", type=click.IntRange(1, 64), help="Processes that draw.  [default: as `talkhead serve`]")
@click.option("--codec", type=click.Choice(CODECS), default="vp8", show_default=True, help="Of the pictures.")
@click.option("--seconds", default=10.0, show_default=True, type=FiniteFloat(3, 600), help="Of each run.")
@click.option("--minute", default=60.0, show_default=True, type=FiniteFloat(3, 7200), help="Seconds of the run that shows the "
              "offset.")
@click.option("--conversations", type=click.IntRange(1, 256), help="Measure only this many side by side, for --minute.  "
              "[default: look for the most that are kept up with]")
@click.option("--audio", type=PATH, help="Speech to use.  [default: the synthetic actor's]")
@mark_option
@click.option("--json", "json_file", type=PATH, help="Write the figures here too.")
def latency(avatars: tuple[Path, ...], device: str, live_workers: int | None, codec: str, seconds: float, minute: float,
            conversations: int | None, audio: Path | None, mark: bool, json_file: Path | None) -> None:
    """Measure how fast AVATAR answers live on this machine, and how many conversations it holds; of several avatars each is in
    turn whom a conversation is with.

    The live workers of `talkhead serve` are driven in real time. Sound features, landmarks, drawing, marks and encoding are in
    every figure; the network and the client's own buffer are not.

    \b
    talkhead latency me.avatar
    talkhead latency me.avatar --device cuda --seconds 60 --json latency.json
    talkhead latency avatars/*.avatar --conversations 16
    """
    from dataclasses import asdict
    from importlib.resources import files

    from serve.latency import report
    from serve.live_workers import worker_count
    from shared.files import refuse_existing, write_json
    from shared.media.audio_io import load_audio

    if json_file is not None:
        refuse_existing(json_file, overwrite=False)
    sound = load_audio(audio or Path(str(files("process_data") / "data" / "actor_test.flac")))
    settings = ServeSettings(avatars=find_avatars(avatars), folder="", device=device, mark=mark,
                             live_workers=live_workers or worker_count(device))
    click.echo(f"{settings.live_workers} live workers; milliseconds after the last sound that a row or picture depends on\n")
    click.echo(f"{'':36} conversations  first  median  99.9 %  missing  offset")
    found = {}
    for name, run in report(settings, sound, codec, seconds, minute, conversations):
        found[name] = asdict(run)
        missed = "" if run.kept_up else "  not kept up with"
        click.echo(f"{name:36} {run.conversations:13} {run.first_ms:6.0f} {run.median_ms:7.0f} {run.worst_ms:7.0f} "
                   f"{run.missing:8.1%} {run.offset_ms:+7.0f}{missed}")
    if json_file is not None:
        write_json(json_file, found)
