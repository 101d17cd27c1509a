"""What this machine can do: one finding a line, with the fix for each lack."""

import importlib
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """`what` was looked at, whether it is `ok`, whether talkhead cannot work without it, and the `fix`."""

    what: str
    ok: bool
    needed: bool = True
    fix: str = ""


# shared libraries that OpenCV and MediaPipe load, and the Debian and Ubuntu packages that carry them
SYSTEM_LIBRARIES = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0", "libEGL.so.1": "libegl1",
                    "libGLESv2.so.2": "libgles2"}


def diagnose() -> Iterator[Finding]:
    """Check Python, libraries, codecs, GPU, memory and disk; yields one Finding each, needed ones first."""
    version = sys.version_info
    yield Finding(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
                  (3, 11) <= version[:2] < (3, 13), fix="use Python 3.11 or 3.12")
    for name in ("numpy", "scipy", "torch", "numba", "safetensors", "yaml", "tqdm"):
        yield _import(name)
    yield _mediapipe()
    yield _codecs()
    yield from _gpu()
    yield _import("tensorboard", needed=False)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding(f"{free:.0f} GB free on this disk", free > 3, needed=False, fix="training caches need about 3 GB")


def _import(name: str, needed: bool = True) -> Finding:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return Finding(f"{name}: {error}", False, needed, f"pip install {name}")
    return Finding(f"{name} {getattr(module, '__version__', '')}", True, needed)


def _mediapipe() -> Finding:
    try:
        module = importlib.import_module("mediapipe")
    except ImportError as error:
        text = str(error)
        package = next((package for library, package in SYSTEM_LIBRARIES.items() if library in text), None)
        fix = f"apt install {package}" if package else "pip install mediapipe==0.10.21"
        return Finding(f"mediapipe (face tracking): {text}", False, fix=fix)
    models = Path(str(module.__file__)).parent / "modules" / "face_landmark" / "face_landmark_with_attention.tflite"
    return Finding(f"mediapipe {module.__version__}, with its face models", models.is_file(),
                   fix="pip install mediapipe==0.10.21 (the last release that carries its models)")


def _codecs() -> Finding:
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        return Finding(f"PyAV: {error}", False, fix="pip install av")
    lacking = [name for name in ("libx264", "aac", "ffv1") if name not in av.codecs_available]
    return Finding(f"PyAV {av.__version__} with H.264, AAC and FFV1", not lacking,
                   fix=f"this PyAV lacks {', '.join(lacking)}: pip install --force-reinstall av")


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
