"""Configuration: one frozen dataclass a stage, YAML overrides, `--set key=value`; unknown keys are errors."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from shared.errors import TalkheadError

T = TypeVar("T")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dataclass -> plain dictionary that JSON and YAML can hold."""
    return dataclasses.asdict(config)


def config_from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """Dictionary -> frozen dataclass `cls` with defaults. Unknown keys and wrong types raise TalkheadError."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(names)}"
            raise TalkheadError(f"{where}: unknown key {str(key)!r}{hint}")
        arguments[key] = _convert(hints[key], value, f"{where}: {key}")
    return cls(**arguments)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TalkheadError(f"{where} should be a group of keys, found {value!r}")
        return config_from_dict(kind, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TalkheadError(f"{where} should be a list, found {value!r}")
        inner = typing.get_args(kind)
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            raise TalkheadError(f"{where} should hold {len(kinds)} values, found {value!r}")
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value))
    if kind is float and isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            raise TalkheadError(f"{where} should be a number, found {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and (not isinstance(value, kind) or kind is int and isinstance(value, bool)):
        raise TalkheadError(f"{where} should be {kind.__name__}, found {value!r}")
    return value


def load_config(cls: type[T], yaml_path: Path | str | None = None, overrides: Iterable[str] = (),
                base: dict[str, Any] | None = None) -> T:
    """Defaults, then `base`, then the YAML file, then `key=value` overrides ("model.dim=192" reaches into groups).

    Raises TalkheadError for an unknown key (with the nearest known name), a wrong type or an unreadable file.
    """
    values: dict[str, Any] = dict(base or {})
    if yaml_path is not None:
        try:
            loaded = yaml.safe_load(Path(yaml_path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TalkheadError(f"{yaml_path} does not exist") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TalkheadError(f"{yaml_path} is not readable YAML: {error}") from error
        if not isinstance(loaded or {}, dict):
            raise TalkheadError(f"{yaml_path} should hold keys and values, found {type(loaded).__name__}")
        _merge(values, loaded or {})
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise TalkheadError(f"--set takes key=value, found {override!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise TalkheadError(f"--set {override!r}: the value is not readable YAML") from error
        nested: Any = value
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        _merge(values, nested)
    return config_from_dict(cls, values, "--set" if overrides else str(yaml_path or "config"))


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
