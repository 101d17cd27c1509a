"""How commands that only draw load torch and numba sooner. For a process of their own: who imports talkhead gets all of torch."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

LATER = "torch._meta_registrations"
USERS = {"torch._dynamo", "torch.onnx", "transformers", "gsplat"}  # that may work on tensors without data


class _Later(ModuleType):
    """Stands for the module LATER until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load(), name)


class _Watch:
    """Sees what is imported for the first time."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in USERS:
            _load()
        return None


def _load() -> ModuleType:
    """The module LATER itself, imported now if it was not before."""
    if _Watch in sys.meta_path:
        sys.meta_path.remove(_Watch)
    if isinstance(sys.modules.get(LATER), _Later):
        del sys.modules[LATER]
    return import_module(LATER)


@contextmanager
def quick_start() -> Iterator[None]:
    """While a command imports what it needs, leave out what it does not need.

    A third of importing torch goes into Python code for tensors that have a shape and no data, which compilers of networks use;
    it is imported when it, or one of USERS, is needed. The garbage collector, which frees nothing of what is being imported,
    rests until the end.
    """
    fresh = "torch" not in sys.modules  # a process of the command line, which has not worked yet
    if fresh:
        sys.modules[LATER] = _Later(LATER)
        sys.meta_path.insert(0, _Watch)
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if fresh:
            gc.freeze()  # modules stay; looking through them costs time again and again
        if collects:
            gc.enable()
