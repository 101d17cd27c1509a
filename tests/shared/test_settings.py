"""Every setting of every configuration and every number of every command: what is out of bounds is refused in one sentence."""

import dataclasses
import math
import typing
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from cli import cli
from shared.config import HIGHEST_SEED, Settings, config_from_dict, load_config, setting
from shared.errors import TalkheadError
from stage1_audio2lmk.config import Stage1Config
from stage2_gaussian.config import Stage2Config
from talkhead.commands.process import parse_ranges
from tools.settings_page import CONFIGS, PAGE, page

FIELDS = [(cls, field) for cls in CONFIGS.values() for field in dataclasses.fields(cls)]
NAMES = [f"{cls.__name__}.{field.name}" for cls, field in FIELDS]


def refusal(cls, **values):
    with pytest.raises(TalkheadError) as caught:
        config_from_dict(cls, values, "here")
    text = str(caught.value)
    assert text.startswith("here: ") and "\n" not in text and len(text) < 250
    return text


def accepted_or_refused_in_a_sentence(cls, **values):
    """A bound is allowed, though it may not go with the other settings' defaults."""
    try:
        config_from_dict(cls, values, "here")
    except TalkheadError as error:
        assert "should be at least" not in str(error) or next(iter(values)) not in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("cls, field", FIELDS, ids=NAMES)
def test_a_setting_keeps_to_its_bounds_and_type(cls, field):
    hint = typing.get_type_hints(cls)[field.name]
    options = typing.get_args(hint) or (hint,)
    low, high = field.metadata["low"], field.metadata["high"]
    name = field.name
    assert field.metadata["meaning"]
    if int in options or float in options and bool not in options:
        assert low is not None and high is not None and low <= field.default <= high
        step = 1 if int in options else 1e-3 * max(1.0, abs(high))
        assert refusal(cls, **{name: low - step}).startswith(f"here: {name} should be at least")
        assert refusal(cls, **{name: high + step}).startswith(f"here: {name} should be at most")
        for wrong in (math.nan, math.inf, -math.inf, "many", "", None, True, [1], {"a": 1}, 10**400):
            assert name in refusal(cls, **{name: wrong})
        if int in options:
            assert f"{name} should be int, found 1.5" in refusal(cls, **{name: 1.5})
        for bound in (low, high):
            accepted_or_refused_in_a_sentence(cls, **{name: bound})
    else:
        wrong_values = ("yes", 1, 0.5, None, []) if options == (bool,) else (1, 0.5, True, [], {"unknown": 1})
        for wrong in wrong_values:
            assert name in refusal(cls, **{name: wrong})
    with pytest.raises(TalkheadError, match=name):
        dataclasses.replace(cls(), **{name: [3]})


def test_the_page_of_settings_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.settings_page"


@pytest.mark.parametrize("cls, values, sentence", [
    (Stage1Config, {"heads": 3}, "dim should be a multiple of twice the heads, 6, found 128"),
    (Stage1Config, {"dim": 4, "heads": 4}, "dim should be a multiple of twice the heads, 8, found 4"),
    (Stage2Config, {"rank": 4}, "rank should be 0 or at least 5, found 4"),
    (CONFIGS["`talkhead torso train`"], {"batch": 3}, "batch should be even, found 3"),
    (CONFIGS["`talkhead process`, `talkhead import adnerf`"], {"max_size": 64},
     "min_size should be at most max_size, which is 64"),
])
def test_settings_that_do_not_go_together(cls, values, sentence):
    assert sentence in refusal(cls, **values)


@dataclass(frozen=True)
class Small(Settings):
    steps: int = setting(10, "optimiser steps", 1, 100)
    rate: float = setting(1e-3, "learning rate", 0, 1)


@pytest.mark.parametrize("text, sentence", [
    ("steps: 3\n\trate: 1\n", "c.yaml, line 2 is not readable YAML: found character '\\t' that cannot start any token; "
                              "indent with spaces, not tabs"),
    ("steps: 3\nsteps: 4\n", "c.yaml, line 2 is not readable YAML: the key 'steps' stands twice"),
    ("- steps\n- rate\n", "c.yaml should hold keys and values, found list"),
    ("steps\n", "c.yaml should hold keys and values, found str"),
    ("a: &a [1, 2]\nb: [*a, *a]\n", "c.yaml, line 2 is not readable YAML: the alias *a is not read; write the value out"),
    ("steps: [1\n", "c.yaml, line 2 is not readable YAML: "),
    ("steps: " + "[" * 5000, "c.yaml is not readable YAML: too many brackets within brackets"),
    ("steps: " + "9" * 5000, "c.yaml holds a number or date that cannot be: Exceeds the limit"),
    ("steps: 2020-13-45", "c.yaml holds a number or date that cannot be: month must be in 1..12"),
    ("? [1, 2]\n: 3\n", "c.yaml, line 1 is not readable YAML: "),
    ("? {a: 1}\n: 3\n", "c.yaml, line 1 is not readable YAML: "),
    ("!!python/object:os.system {}\n", "c.yaml, line 1 is not readable YAML: could not determine a constructor"),
    ("steps: 3\n---\nsteps: 4\n", "c.yaml, line 2 is not readable YAML: "),
    ("steps: \x00", "c.yaml is not readable YAML: unacceptable character"),
    ("#" * 200000, "c.yaml is 100001 bytes long, too much for settings"),
    ("steps: .inf", "c.yaml: steps should be int, found inf"),
    ("rate: .nan", "c.yaml: rate should be a finite number, found nan"),
    ("rate: '1e-3'", "c.yaml: rate should be float, found '1e-3'"),
    ("rate: yes", "c.yaml: rate should be float, found True"),
    ("steps:", "c.yaml: steps should be int, found None"),
    ("1: 2", "c.yaml: unknown key '1'; known keys: steps, rate"),
])
def test_a_damaged_settings_file_is_refused_in_one_line(tmp_path, text, sentence):
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(TalkheadError) as caught:
        load_config(Small, tmp_path / "c.yaml")
    assert sentence in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("data, expected", [
    (b"", Small()), (b"\xef\xbb\xbfsteps: 5\r\nrate: 1e-2\r\n", Small(5, 0.01)), ("steps: 5".encode("utf-16"), Small(5)),
    (b"# nothing\n", Small()), (b"rate: 1\n", Small(rate=1.0)),
])
def test_a_settings_file_of_any_editor_is_read(tmp_path, data, expected):
    (tmp_path / "c.yaml").write_bytes(data)
    assert load_config(Small, tmp_path / "c.yaml") == expected


def test_settings_from_a_file_and_the_command_name_both(tmp_path):
    (tmp_path / "c.yaml").write_text("rate: 2")
    with pytest.raises(TalkheadError, match="c.yaml with --set: rate should be at most 1, found 2"):
        load_config(Small, tmp_path / "c.yaml", ["steps=3"])
    (tmp_path / "c.yaml").write_bytes(b"steps: \xff")
    with pytest.raises(TalkheadError, match="c.yaml is not readable YAML"):
        load_config(Small, tmp_path / "c.yaml")
    with pytest.raises(TalkheadError, match="cannot be read: Is a directory"):
        load_config(Small, tmp_path)


def numeric_options(group, prefix=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from numeric_options(command, (*prefix, name))
        else:
            yield from (((*prefix, name), command, option) for option in command.params
                        if isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType)))


OPTIONS = list(numeric_options(cli))


@pytest.mark.parametrize("path, command, option", OPTIONS, ids=[f"{' '.join(path)} {o.opts[0]}" for path, _, o in OPTIONS])
def test_every_number_of_every_command_has_finite_bounds(path, command, option):
    assert option.type.min is not None and option.type.max is not None, "a number without bounds"
    arguments = ["x" for parameter in command.params if isinstance(parameter, click.Argument)]
    required = [other.opts[0] for other in command.params if isinstance(other, click.Option) and other.required]
    needed = [text for name in required for text in (name, "x")]
    for wrong in ("nan", "inf", "-inf", "1e400", "9" * 400, str(option.type.min - 1), str(option.type.max + 1), "", "²"):
        result = CliRunner().invoke(cli, [*path, *arguments, *needed, f"{option.opts[0]}={wrong}"])
        assert result.exit_code == 2 and f"Error: Invalid value for '{option.opts[0]}'" in result.output, (wrong, result.output)


def test_there_are_no_numbers_without_bounds_left():
    assert {option.opts[0] for _, _, option in OPTIONS} >= {
        "--seed", "--liveliness", "--orbit", "--period", "--mouth-gain", "--smile", "--blink", "--smooth", "--retime", "--fps",
        "--frame", "--every", "--size", "--workers"}
    assert all(option.type.max == HIGHEST_SEED for _, _, option in OPTIONS if option.opts[0] == "--seed")


@pytest.mark.parametrize("splits", [("train=0:5²",), ("train=٣:٥",), ("train=0:" + "9" * 5000,), ("train=-1:5",), ("=0:5",),
                                    ("train=0:5:7",), ("train= 0:5",), ("train=1e1:50",), ("train=0:125", "test=50:125"),
                                    ("train=0:100", "train=10:20", "test=50:60"), ("test=10:20", "train=0:11")])
def test_odd_and_overlapping_splits_are_refused(splits):
    with pytest.raises(TalkheadError, match="--split"):
        parse_ranges(splits)


def test_splits_that_touch_and_stretches_of_one_split_are_taken():
    assert parse_ranges(("train=0:50", "train=40:60", "test=60:70")) == {"train": [(0, 50), (40, 60)], "test": [(60, 70)]}
