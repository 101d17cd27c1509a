"""What this machine can do: one finding a line, with the fix for each lack."""

import codecs
import ctypes
import importlib
import importlib.util
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import talkhead_guard
from shared import machine
from shared.errors import TalkheadError

LEAST_MEMORY = 2e9  # bytes
SERVE = ("fastapi", "uvicorn", "websockets", "python_multipart")


@dataclass(frozen=True)
class Finding:
    """`what` was looked at, whether it is `ok`, whether talkhead cannot work without it, and the `fix`."""

    what: str
    ok: bool
    needed: bool = True
    fix: str = ""


# shared libraries that OpenCV and MediaPipe load, and the Debian and Ubuntu packages that carry them
SYSTEM_LIBRARIES = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0", "libEGL.so.1": "libegl1",
                    "libGLESv2.so.2": "libgles2", "libxcb.so.1": "libxcb1"}


def diagnose() -> Iterator[Finding]:
    """Check Python, libraries, codecs, GPU, memory and disk; yields one Finding each, needed ones first."""
    version = sys.version_info
    yield Finding(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
                  (3, 11) <= version[:2] < (3, 15), fix="use Python 3.11 to 3.14")
    for name in ("numpy", "scipy", "torch", "numba", "safetensors", "yaml", "tqdm"):
        yield _import(name)
    yield _opencv()
    yield _mediapipe()
    yield _codecs()
    yield from _gpu()
    yield _import("tensorboard", needed=False)
    yield _serve()
    yield _packages()
    yield _processes()
    yield from _limits()
    yield from _folders()
    yield _encoding()


def _import(name: str, needed: bool = True) -> Finding:
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library that it loads by itself
        return Finding(f"{name}: {error}", False, needed, f"pip install {name}")
    return Finding(f"{name} {getattr(module, '__version__', '')}", True, needed)


def _opencv() -> Finding:
    try:
        module = importlib.import_module("cv2")
        importlib.import_module("process_data.opencv").require_contrib()
    except TalkheadError as error:
        what, _, fix = str(error).rpartition("; ")
        return Finding(what, False, fix=fix)
    except (ImportError, OSError) as error:
        return _system_libraries("OpenCV", error) or Finding(f"OpenCV: {error}", False, fix="pip install opencv-contrib-python")
    return Finding(f"OpenCV {module.__version__} with its contrib modules", True)


def _mediapipe() -> Finding:
    try:
        module = importlib.import_module("mediapipe")
        numpy = importlib.import_module("numpy")
        detector = importlib.import_module("process_data.detection.detector").open_detector()
        detector.points(numpy.zeros((64, 64, 3), numpy.uint8))
        detector.close()
    except (ImportError, OSError, TalkheadError) as error:
        what = "mediapipe (face tracking)"
        return _system_libraries(what, error) or Finding(f"{what}: {error}", False,
                                                         fix="pip install --force-reinstall 'mediapipe>=1.2,<2'")
    return Finding(f"mediapipe {module.__version__}, with its face models", True)


def _system_libraries(what: str, error: Exception) -> Finding | None:
    """What is lacking where `error` is that a library of the system could not be loaded."""
    lacking = {library: package for library, package in SYSTEM_LIBRARIES.items() if not _loads(library)}
    if sys.platform != "linux" or not any(library in str(error) for library in lacking):
        return None
    return Finding(f"{what} lacks {', '.join(lacking)}", False, fix=f"apt install {' '.join(lacking.values())}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _codecs() -> Finding:
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        return Finding(f"PyAV: {error}", False, fix="pip install av")
    lacking = [name for name in ("libx264", "aac", "ffv1") if name not in av.codecs_available]
    return Finding(f"PyAV {av.__version__} with H.264, AAC and FFV1", not lacking,
                   fix=f"this PyAV lacks {', '.join(lacking)}: pip install --force-reinstall av")


def lacking_for_serve() -> list[str]:
    """Modules of the extra that `talkhead serve` needs, which are not installed."""
    return [name for name in SERVE if importlib.util.find_spec(name) is None]


def _serve() -> Finding:
    lacking = lacking_for_serve()
    return Finding(f"`talkhead serve` lacks {', '.join(lacking)}" if lacking else "what `talkhead serve` needs", not lacking,
                   needed=False, fix="pip install 'talkhead[serve]'")


def _packages() -> Finding:
    try:
        talkhead_guard.check("cli", *talkhead_guard.PACKAGES)
    except ImportError as error:
        what, _, fix = str(error).rpartition("; ")
        return Finding(what, False, fix=fix)
    return Finding(f"talkhead's own packages, in {talkhead_guard.HERE}", True)


def _processes() -> Finding:
    try:
        multiprocessing.get_context("spawn").Lock()
    except (ImportError, OSError) as error:
        return Finding(f"worker processes cannot share memory: {error}", False,
                       fix="`talkhead process` needs a writable /dev/shm")
    return Finding("worker processes can share memory", True)


def _limits() -> Iterator[Finding]:
    count, memory = machine.cpus(), machine.memory()
    quota, limit = machine.cpu_quota(), machine.memory_limit()
    held = ", to which the container is held" if quota is not None and quota <= count else ""
    yield Finding(f"{count:g} of {os.cpu_count()} processors{held}", True, needed=False)
    if memory is not None:
        held = ", to which the container is held" if limit is not None and limit <= memory else ""
        yield Finding(f"{memory / 1e9:.1f} GB of memory{held}", memory >= LEAST_MEMORY, needed=False,
                      fix=f"`talkhead process` needs about {LEAST_MEMORY / 1e9:.0f} GB, trainings more")
    yield Finding(f"`talkhead process` starts {machine.workers()} worker process(es)", True, needed=False)


def _folders() -> Iterator[Finding]:
    try:
        here = Path.cwd()
    except OSError as error:
        yield Finding(f"the current folder: {error.strerror}", False, needed=False, fix="change to a folder that exists")
    else:
        yield _writable("the current folder", here, "change to a folder of your own")
        free = shutil.disk_usage(here).free / 1e9
        yield Finding(f"{free:.0f} GB free on this disk", free > 3, needed=False, fix="training caches need about 3 GB")
    try:
        yield _writable("the temporary folder", Path(tempfile.gettempdir()), "set TMPDIR to a folder of your own")
    except OSError:
        yield Finding("no temporary folder can be written", False, needed=False, fix="set TMPDIR to a folder of your own")
    yield from _compiled()


def _compiled() -> Iterator[Finding]:
    try:
        from shared.compiled import cache_place
    except ImportError:  # numba is missing, which is told above
        return
    place = cache_place()
    yield Finding(f"compiled code is kept in {place}" if place else "no folder for compiled code can be written", bool(place),
                  needed=False, fix="every process compiles for itself, which takes a minute; set NUMBA_CACHE_DIR to a folder")


def _writable(what: str, folder: Path, fix: str) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding(f"{what} {folder} can be written", True, needed=False)
    except OSError as error:
        return Finding(f"{what} {folder} cannot be written: {error.strerror}", False, needed=False, fix=fix)


def _encoding() -> Finding:
    names, printed = sys.getfilesystemencoding(), getattr(sys.stdout, "encoding", None) or "utf-8"
    known = all(codecs.lookup(name).name == "utf-8" for name in (names, printed))
    return Finding(f"file names are in {names}, what is printed in {printed}", known, needed=False,
                   fix="other characters are printed as escapes; set LANG=C.UTF-8 or PYTHONUTF8=1")


def _gpu() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        yield Finding(f"no CUDA GPU: everything runs on the CPU, slower ({torch.get_num_threads()} threads)", False,
                      needed=False)
        return
    yield Finding(f"CUDA GPU: {torch.cuda.get_device_name()}", True, needed=False)
    found = importlib.util.find_spec("gsplat") is not None
    yield Finding("gsplat (GPU rasteriser)", found, fix="pip install gsplat==1.5.3")
    if found:
        nvcc = shutil.which("nvcc") is not None
        yield Finding("nvcc (gsplat compiles itself on first use)", nvcc, needed=False,
                      fix="install the CUDA toolkit of the version that torch was built with")
    resample = importlib.import_module("stage1_audio2lmk.audio.device_front_end").torchaudio_resample()
    yield Finding("torchaudio (resampling on the GPU)", resample is not None, needed=False,
                  fix="pip install 'talkhead[gpu]'; until then talkhead's own, which is as good, is used")
