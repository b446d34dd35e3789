"""Plain data as frozen dataclasses with types and ranges: every problem at once, each with its key path.

    {"rank": 0} -> parse(Lora, data, "lora", problems) -> problems == ["lora.rank=0: expected >= 1 and <= 1024", ...]

A class's fields say their range where they are declared: `rank: int = number(1, 1024)`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedmed.errors import ConfigError

T = TypeVar("T")


def number(low: float, high: float = float("inf"), *, above: bool = False, below: bool = False) -> Any:
    """A field in [low, high]; `above` and `below` exclude the end."""
    return field(metadata={"low": low, "high": high, "above": above, "below": below})


def choice(*allowed: str) -> Any:
    return field(metadata={"choices": allowed})


def choices(*allowed: str) -> Any:
    """A list of some of these, that may be empty."""
    return field(metadata={"choices": allowed, "empty": True})


def texts() -> Any:
    """A list of texts that may be empty."""
    return field(metadata={"empty": True})


def parse_file(cls: type[T], path: Path, hint: str) -> T:
    """A YAML file as a frozen dataclass with every key given, for example a site's policy."""
    problems: list[str] = []
    value = parse(cls, to_plain(read_yaml(path), path.name), "", problems)
    if problems:
        raise ConfigError([f"{path.name}: {problem}" for problem in problems], hint)
    return value


def read_yaml(path: Path) -> DictConfig:
    if not path.exists():
        raise ConfigError([f"{path} does not exist"])
    config = None
    # One quoted text is read as YAML a second time; where that is a number, OmegaConf has an assertion for it and no error.
    with readable(f"{path} is not readable YAML"), suppress(AssertionError):
        config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise ConfigError([f"{path} holds a list or a single value, expected keys and values"])
    return config


def to_plain(config: Any, where: str) -> Any:
    """Plain data, with every `${...}` looked up. Raises ConfigError for one that leads nowhere."""
    with readable(where):
        return OmegaConf.to_container(config, resolve=True)


@contextmanager
def readable(where: str) -> Iterator[None]:
    """What YAML and OmegaConf raise, as one ConfigError: their own trees; ValueError for bytes that are no UTF-8 and numbers
    of thousands of digits; TypeError for keys that cannot be keys; RecursionError for nesting without end."""
    try:
        yield
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError([f"{where}: {' '.join(str(error).split()) or type(error).__name__}"]) from None


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def parse(cls: Any, data: Any, path: str, problems: list[str]) -> Any:
    """`data` as a `cls`; appends one line to `problems` per wrong key and goes on."""
    prefix = f"{path}." if path else ""
    if not isinstance(data, dict):
        problems.append(f"{path or 'the file'}={data!r}: expected a group of keys")
        return None
    hints = _hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            problems.append(f"{prefix}{key}: unknown key; {path or 'the top level'} has {', '.join(fields)}")
    values = {}
    for name, item in fields.items():
        if name not in data:
            problems.append(f"{prefix}{name}: missing")
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = parse(hints[name], data[name], prefix + name, problems)
        else:
            values[name] = _value(hints[name], data[name], item.metadata, prefix + name, problems)
    return cls(**values) if len(values) == len(fields) else None


def _value(hint: Any, value: Any, rule: Any, path: str, problems: list[str]) -> Any:
    if hint == tuple[str, ...]:
        may_be_empty = rule.get("empty", False)
        if (
            not isinstance(value, list)
            or not (value or may_be_empty)
            or not all(isinstance(item, str) for item in value)
        ):
            problems.append(f"{path}={value!r}: expected a list of texts{'' if may_be_empty else ', not empty'}")
            return ()
        for item in value:
            _check_rule(item, rule, path, problems)
        return tuple(value)
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
        wrong = [key for key in value if not (isinstance(key, str) and key)] if isinstance(value, dict) else value
        if not isinstance(value, dict) or wrong:
            problems.append(f"{path}={wrong!r}: expected names, each with a group of keys")
            return {}
        return {key: parse(typing.get_args(hint)[1], item, f"{path}.{key}", problems) for key, item in value.items()}
    if hint == dict[str, str]:
        if (
            not isinstance(value, dict)
            or not value
            or not all(isinstance(item, str) for item in [*value, *value.values()])
        ):
            problems.append(f"{path}={value!r}: expected keys with texts, not empty")
            return {}
        return dict(value)
    if hint == dict[str, int]:
        if not isinstance(value, dict) or not all(
            isinstance(key, str) and type(item) is int for key, item in value.items()
        ):
            problems.append(f"{path}={value!r}: expected names with whole numbers")
            return {}
        for key, item in value.items():
            _check_rule(item, rule, f"{path}.{key}", problems)
        return dict(value)
    if hint is float and type(value) is int:
        with suppress(OverflowError):  # a number beyond every float stays what it is, and is refused below
            value = float(value)
    if type(value) is not hint:
        problems.append(f"{path}={value!r}: expected {hint.__name__}, got {type(value).__name__}")
        return value
    _check_rule(value, rule, path, problems)
    return value


def _check_rule(value: Any, rule: Any, path: str, problems: list[str]) -> None:
    if "choices" in rule and value not in rule["choices"]:
        problems.append(f"{path}={value!r}: expected one of {', '.join(rule['choices'])}")
    if "low" in rule:
        low, high = rule["low"], rule["high"]
        inside = (value > low if rule["above"] else value >= low) and (value < high if rule["below"] else value <= high)
        if not inside or value == float("inf"):
            ends = f"{'>' if rule['above'] else '>='} {low:g}"
            if high != float("inf"):
                ends += f" and {'<' if rule['below'] else '<='} {high:g}"
            elif value == high:
                ends += " and finite"
            problems.append(f"{path}={value!r}: expected {ends}")
