"""numba's compiler with a cache on disk that never stands in the way of the work."""

import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import numba
from numba.core.caching import FunctionCache

from shared import machine

DAMAGED = (EOFError, pickle.UnpicklingError)


class _Cache(FunctionCache):
    """A full, damaged or unreadable disk costs the time to compile again, nothing else."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        load_arrays()
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            return None
        except DAMAGED:
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError, *DAMAGED):
            super().save_overload(sig, data)


def load_arrays() -> None:
    """Load what numba knows of arrays, as it does by itself before the first function is used, but without scipy.linalg.

    numba asks there whether scipy has BLAS, only to choose how np.convolve is compiled, and that import takes longer than the
    rest. A matrix product asks for it anew when it is compiled. To be called where nothing is compiled beside.
    """
    if "numba.np.arraymath" in sys.modules:
        return
    linalg: Any = import_module("numba.np.linalg")
    asks = linalg.ensure_blas
    linalg.ensure_blas = _no_blas
    try:
        import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = asks


def _no_blas() -> None:
    raise ImportError("not looked for")


def cached_njit(**options: Any) -> Callable[[Callable], Any]:
    """`numba.njit(cache=True, nogil=True, **options)` for any machine.

    numba keeps compiled code beside the source, or else in the user's cache folder. Where neither can be written, it is
    kept in the temporary folder, and where that is not possible either, every process compiles for itself.
    """
    def compiled(function: Callable) -> Any:
        dispatcher = numba.njit(nogil=True, **options)(function)
        cache = _open_cache(function)
        if cache is not None:
            dispatcher._cache = cache
        return dispatcher

    return compiled


def _open_cache(function: Callable) -> _Cache | None:
    with suppress(RuntimeError):  # numba found no folder that can be written
        return _Cache(function)
    folder = machine.private_folder("numba")
    if folder is None:
        return None
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        return _Cache(function)
    except RuntimeError:
        return None
    finally:
        config.CACHE_DIR = before


def cache_place() -> str | None:
    """The folder in which compiled code is kept; None if there is none."""
    cache = _open_cache(cache_place)
    return None if cache is None else cache.cache_path
