"""Configuration: frozen dataclasses of settings with bounds, YAML files, `--set key=value`; unknown keys are errors."""

import dataclasses
import difflib
import functools
import math
import numbers
import re
import reprlib
import types
import typing
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from shared.errors import TalkheadError

T = TypeVar("T")

HIGHEST_SEED = 2**32 - 1
LARGEST_YAML = 100_000  # bytes; PyYAML reads about that much a second

_short = reprlib.Repr()
_short.maxlevel, _short.maxother, _short.maxstring, _short.maxlong = 2, 60, 60, 30


def shown(value: Any) -> str:
    """`repr` of a value that a user gave, short however long or deep the value is."""
    return _short.repr(value)


def setting(default: Any, meaning: str, low: float | None = None, high: float | None = None) -> Any:
    """A field of a `Settings` dataclass: its default, what it means, and the bounds that its value must keep, both included."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "low": low, "high": high})


def seed_setting() -> Any:
    """The field `seed`, the same in every configuration."""
    return setting(0, "of everything that is drawn at random", 0, HIGHEST_SEED)


def with_default(cls: Any, name: str, default: Any) -> Any:
    """The field `name` of the settings `cls` with another default, for a subclass."""
    return dataclasses.field(default=default, metadata=cls.__dataclass_fields__[name].metadata)


class Settings:
    """Base of the dataclasses of settings: types, bounds and `check` are looked at whenever one is made."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            problem = _problem(hints[field.name], getattr(self, field.name), field.metadata)
            if problem:
                raise TalkheadError(f"{field.name} {problem}")
        self.check()

    def check(self) -> None:
        """Raise TalkheadError for values that are allowed each, but do not go together."""


def _problem(kind: Any, value: Any, bounds: Any) -> str:
    """What is wrong with a value of a setting, or ""."""
    options = typing.get_args(kind) or (kind,)
    if value is None and type(None) in options:
        return ""
    number = int if int in options else float if float in options else None
    if number is None or bool in options:
        return "" if isinstance(value, tuple(options)) else f"should be {_name(options[0])}, found {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if number is int else numbers.Real):
        return f"should be {number.__name__}, found {shown(value)}"
    low, high = bounds.get("low"), bounds.get("high")
    if value != value or value in (math.inf, -math.inf):
        return f"should be a finite number, found {value}"
    if low is not None and value < low:
        return f"should be at least {_plain(low)}, found {shown(value)}"
    if high is not None and value > high:
        return f"should be at most {_plain(high)}, found {shown(value)}"
    return ""


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _name(kind: Any) -> str:
    return {bool: "true or false", str: "text"}.get(kind, getattr(kind, "__name__", str(kind)))


_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def file_key(field: dataclasses.Field) -> str:
    """The name of a dataclass field in files: `metadata["key"]` if it has one, else the field's own name."""
    return field.metadata.get("key", field.name)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dataclass -> plain dictionary that JSON and YAML can hold, by `file_key` at the top level."""
    values = dataclasses.asdict(config)
    return {file_key(field): values[field.name] for field in dataclasses.fields(config)}


def config_from_dict(cls: type[T], values: Any, where: str = "config") -> T:
    """Dictionary -> dataclass `cls`, nested ones, lists and dictionaries included; keys that lack take their default.

    Raises TalkheadError, beginning with `where`: an unknown key, a key missing that has no default, a wrong type, and for
    `Settings` values out of bounds or that do not go together.
    """
    if not isinstance(values, dict):
        raise TalkheadError(f"{where} should be a group of keys, found {shown(values)}")
    hints = _hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    name_of = {file_key(field): field.name for field in fields}
    arguments = {}
    for key, value in values.items():
        if key not in name_of:
            near = difflib.get_close_matches(str(key)[:60], name_of, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(name_of)}"
            raise TalkheadError(f"{where}: unknown key {shown(str(key))}{hint}")
        arguments[name_of[key]] = _convert(hints[name_of[key]], value, f"{where}: {key}")
    for field in fields:
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            raise TalkheadError(f"{where}: the key {file_key(field)!r} is missing")
    try:
        return cls(**arguments)
    except TalkheadError as error:  # of `Settings`
        raise TalkheadError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return config_from_dict(kind, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise TalkheadError(f"{where} should be a list, found {shown(value)}")
        inner = typing.get_args(kind)
        any_length = origin is list or len(inner) == 2 and inner[1] is Ellipsis
        kinds = [inner[0]] * len(value) if any_length else list(inner)
        if len(kinds) != len(value):
            raise TalkheadError(f"{where} should hold {len(kinds)} values, found {shown(value)}")
        return origin(_convert(k, v, where) for k, v in zip(kinds, value))
    if origin is dict:
        if not isinstance(value, dict):
            raise TalkheadError(f"{where} should be a group of keys, found {shown(value)}")
        inner_key, inner_value = typing.get_args(kind)
        return {_convert(inner_key, k, where): _convert(inner_value, v, f"{where}: {shown(k)}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise TalkheadError(f"{where} should be a finite number, found {shown(value)}") from None
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise TalkheadError(f"{where} should be a finite number, found {value}")
    if kind in (int, float, str, bool) and (not isinstance(value, kind) or kind is int and isinstance(value, bool)):
        raise TalkheadError(f"{where} should be {kind.__name__}, found {shown(value)}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which can grow without end, and without keys that stand twice; 1e-3 is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"the alias *{event.anchor} is not read; write the value out",
                                       problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {shown(key)} stands twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else id(key_node))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$", re.ASCII),
                              list("-+.0123456789"))


def _parse_yaml(data: bytes | str, where: str) -> Any:
    """One YAML document, a file's bytes or a value's text. Raises TalkheadError with one line that names the place."""
    if len(data) > LARGEST_YAML:
        raise TalkheadError(f"{where} is {len(data)} bytes long, too much for settings")
    try:
        return yaml.load(data, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and isinstance(data, bytes) else ""
        tab = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise TalkheadError(f"{where}{line} is not readable YAML: {' '.join(str(error.problem).split())[:200]}{tab}") from error
    except yaml.YAMLError as error:
        raise TalkheadError(f"{where} is not readable YAML: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise TalkheadError(f"{where} is not readable YAML: too many brackets within brackets") from error
    except (ValueError, OverflowError, TypeError, AttributeError) as error:  # of values that look like numbers, dates or bytes
        raise TalkheadError(f"{where} holds a number or date that cannot be: {str(error).split(';')[0][:200]}") from error


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The keys and values of a YAML file, none if it is empty. Raises TalkheadError for anything else."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_YAML + 1)
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except OSError as error:
        raise TalkheadError(f"{path} cannot be read: {error.strerror}") from error
    loaded = _parse_yaml(data, str(path))
    if not isinstance(loaded, dict) and loaded is not None:
        raise TalkheadError(f"{path} should hold keys and values, found {type(loaded).__name__}")
    return loaded or {}


def load_config(cls: type[T], yaml_path: Path | str | None = None, overrides: Iterable[str] = (),
                base: dict[str, Any] | None = None) -> T:
    """Defaults, then `base`, then the YAML file, then `key=value` overrides ("model.dim=192" reaches into groups).

    Raises TalkheadError for an unreadable file and what `config_from_dict` refuses.
    """
    values: dict[str, Any] = dict(base or {})
    if yaml_path is not None:
        _merge(values, read_yaml(yaml_path))
    overrides = tuple(overrides)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise TalkheadError(f"--set takes key=value, found {shown(override)}")
        nested: Any = _parse_yaml(text, f"--set {shown(override)}: the value")
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        _merge(values, nested)
    sources = ([str(yaml_path)] if yaml_path is not None else []) + (["--set"] if overrides else [])
    return config_from_dict(cls, values, " with ".join(sources) or "config")


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
