"""Frozen dataclasses as configuration: absl flags, JSON, fingerprint, differences.

An experiment's config is a frozen dataclass nested by role. Each leaf field becomes one
absl flag with a dotted name, `--config.strategy.learning_rate`; absl checks its type
and suggests the near name for a typo.
"""

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from nasjax.core.types import InputError

PREFIX = "config"


def field(
  default: Any,
  help_text: str,
  choices: Sequence[str] | None = None,
  matters: bool = True,
) -> Any:
  """A field with a line of help and, for a string or several, the legal values.

  One that does not matter changes how a run is done and not what it finds: a run may go
  on with another value of it.
  """
  metadata = {
    "help": help_text,
    "choices": tuple(choices) if choices else None,
    "matters": matters,
  }
  return dataclasses.field(default=default, metadata=metadata)


class Leaf(typing.NamedTuple):
  """One leaf field: dotted name, value, annotation, help, choices, `matters`."""

  name: str
  value: Any
  annotation: Any
  help: str
  choices: tuple[str, ...] | None
  matters: bool


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
  """The leaf fields of a config, in order of definition."""
  hints = typing.get_type_hints(type(config))
  for item in dataclasses.fields(config):
    value, name = getattr(config, item.name), prefix + item.name
    if dataclasses.is_dataclass(value):
      yield from leaves(value, name + ".")
    else:
      yield Leaf(
        name,
        value,
        hints[item.name],
        item.metadata.get("help", ""),
        item.metadata.get("choices"),
        item.metadata.get("matters", True),
      )


class _TupleParser(flags.ArgumentParser):
  """Comma-separated values of one type as a tuple; Python's brackets may stand."""

  def __init__(self, item: type, choices: tuple[str, ...] | None = None):
    super().__init__()
    self._item, self._choices = item, choices
    self.syntactic_help = f"comma-separated {item.__name__} values"

  def parse(self, argument: Any) -> tuple:
    if isinstance(argument, tuple):  # the default
      return argument
    text = argument.strip("()[] ").removesuffix(",")
    parts = [part.strip() for part in text.split(",")] if text else []
    try:
      if not all(parts):
        raise ValueError
      values = tuple(self._item(part) for part in parts)
    except ValueError:
      raise ValueError(f"expected {self.syntactic_help}, got {argument!r}") from None
    unknown = [
      value for value in values if self._choices and value not in self._choices
    ]
    if unknown:
      raise ValueError(
        f"{', '.join(unknown)}: should be out of <{'|'.join(self._choices or ())}>"
      )
    return values

  def flag_type(self) -> str:
    return self.syntactic_help


class _TupleSerializer(flags.ArgumentSerializer):
  def serialize(self, value: tuple) -> str:
    return ",".join(map(str, value))


class _OptionalParser(flags.ArgumentParser):
  """What another parser reads, or the word `none`."""

  def __init__(self, parser: flags.ArgumentParser):
    super().__init__()
    self._parser = parser
    self.syntactic_help = f"{parser.syntactic_help or 'a string'}, or none"

  def parse(self, argument: Any) -> Any:
    is_none = isinstance(argument, str) and argument.lower() == "none"
    return None if is_none else self._parser.parse(argument)

  def flag_type(self) -> str:
    return self.syntactic_help


class _PlainParser(flags.ArgumentParser):
  """What a parser of absl reads; otherwise says what is expected, as tuples do."""

  def parse(self, argument: Any) -> Any:
    try:
      return super().parse(argument)
    except (TypeError, ValueError):
      raise ValueError(f"expected {self.syntactic_help}, got {argument!r}") from None


class _IntegerParser(_PlainParser, flags.IntegerParser):
  """A whole number."""


class _FloatParser(_PlainParser, flags.FloatParser):
  """A number."""


class _BooleanParser(_PlainParser, flags.BooleanParser):
  """A truth value."""

  syntactic_help = "true or false"


_PARSERS: dict[type, type[flags.ArgumentParser]] = {
  int: _IntegerParser,
  float: _FloatParser,
  str: flags.ArgumentParser,
}


def _item_type(annotation: Any) -> type:
  """The element type of `tuple[X, ...]`, or X of `X` and `X | None`."""
  inside = set(typing.get_args(annotation)) - {type(None), Ellipsis}
  return inside.pop() if len(inside) == 1 else annotation


def _is_tuple(annotation: Any) -> bool:
  return typing.get_origin(annotation) is tuple


def _is_optional(annotation: Any) -> bool:
  return type(None) in typing.get_args(annotation)


def define_flags(config: Any, flag_values: flags.FlagValues) -> None:
  """Defines one flag per leaf field; defaults are the config's values.

  Args:
    config: a frozen dataclass whose leaves are int, float, bool or str, one of these
      or None (given as the word `none`), or a tuple of one of these.
    flag_values: where the flags go.

  Raises:
    TypeError: for a field whose type has no flag.
  """
  options: Any = {"flag_values": flag_values}
  for leaf in leaves(config):
    name = f"{PREFIX}.{leaf.name}"
    if leaf.annotation is bool:
      flags.DEFINE_boolean(name, leaf.value, leaf.help, **options)
      flag_values[name].parser = _BooleanParser()
      continue
    is_tuple = _is_tuple(leaf.annotation)
    serializer = _TupleSerializer() if is_tuple else flags.ArgumentSerializer()
    flags.DEFINE(
      _parser(leaf), name, leaf.value, leaf.help, serializer=serializer, **options
    )


def _parser(leaf: Leaf) -> flags.ArgumentParser:
  item = _item_type(leaf.annotation)
  if item not in _PARSERS:
    raise TypeError(f"no flag for {leaf.name}: {leaf.annotation}")
  if _is_tuple(leaf.annotation):
    return _TupleParser(item, leaf.choices)
  parser = flags.EnumParser(leaf.choices) if leaf.choices else _PARSERS[item]()
  return _OptionalParser(parser) if _is_optional(leaf.annotation) else parser


def describe(config: Any) -> list[tuple[str, str]]:
  """For every leaf field its flag with the config's value, and its line of help."""

  def shown(value: Any) -> str:
    if value is None:
      return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

  return [
    (
      f"--{PREFIX}.{leaf.name}={shown(leaf.value)}",
      f"{leaf.help} ({' | '.join(leaf.choices)})" if leaf.choices else leaf.help,
    )
    for leaf in leaves(config)
  ]


def from_flags(config: Any, flag_values: flags.FlagValues) -> Any:
  """The config with the fields replaced whose flags stand on the command line.

  Raises:
    InputError: for a number that is not finite.
  """
  given = {
    leaf.name: flag_values[f"{PREFIX}.{leaf.name}"].value
    for leaf in leaves(config)
    if flag_values[f"{PREFIX}.{leaf.name}"].present
  }
  for name, value in given.items():
    _check_finite(name, value)
  return _replaced(config, given)


def _replaced(config: Any, given: dict[str, Any]) -> Any:
  changes: dict[str, Any] = {}
  for item in dataclasses.fields(config):
    value, inside = getattr(config, item.name), item.name + "."
    if dataclasses.is_dataclass(value):
      below = {k[len(inside) :]: v for k, v in given.items() if k.startswith(inside)}
      changes[item.name] = _replaced(value, below)
    elif item.name in given:
      changes[item.name] = given[item.name]
  return dataclasses.replace(config, **changes)


def _check_finite(name: str, value: Any) -> None:
  for number in value if isinstance(value, tuple) else (value,):
    if isinstance(number, float) and not math.isfinite(number):
      raise InputError(f"--{PREFIX}.{name} must be a finite number, got {number}")


def _conform(leaf: Leaf, value: Any) -> Any:
  """The value as the field's type: 1 is 1.0 for a float, a list is a tuple.

  Without it, equal configs could have different fingerprints.
  """
  item, is_tuple = _item_type(leaf.annotation), _is_tuple(leaf.annotation)
  if value is None and _is_optional(leaf.annotation):
    return None
  given = value if is_tuple and isinstance(value, (tuple, list)) else (value,)
  items = tuple(float(v) if item is float and type(v) is int else v for v in given)
  if any(type(v) is not item for v in items) or is_tuple != (given is value):
    wanted = item.__name__ if leaf.annotation is item else leaf.annotation
    raise InputError(f"config value {leaf.name} must be {wanted}, got {value!r}")
  value = items if is_tuple else items[0]
  if leaf.choices and any(v not in leaf.choices for v in items):
    raise InputError(
      f"config value {leaf.name} must be one of {', '.join(leaf.choices)}, "
      f"got {value!r}"
    )
  _check_finite(leaf.name, value)
  return value


def to_dict(config: Any) -> dict[str, Any]:
  """The config as nested plain JSON values (tuples become lists).

  Raises:
    InputError: for a value that is not of its field's type, or not finite.
  """
  conformed = {leaf.name: _conform(leaf, leaf.value) for leaf in leaves(config)}
  return json.loads(json.dumps(dataclasses.asdict(_replaced(config, conformed))))


def from_dict(config: Any, values: dict[str, Any]) -> Any:
  """A config of the same class as `config` with the values of `to_dict`.

  Raises:
    InputError: naming the keys that are unknown or missing, or a value of another type.
  """
  known, given = {leaf.name: leaf for leaf in leaves(config)}, _flatten(values)
  for problem, wrong in (
    ("unknown", [name for name in given if name not in known]),
    ("missing", [name for name in known if name not in given]),
  ):
    if wrong:
      raise InputError(f"{problem} config keys: {', '.join(wrong)}")
  return _replaced(config, {k: _conform(known[k], v) for k, v in given.items()})


def fingerprint(config: Any) -> str:
  """16 hexadecimal digits that differ when any value that matters does."""
  values = _flatten(to_dict(config))
  for name in immaterial(config):
    values.pop(name, None)
  text = json.dumps(values, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def immaterial(config: Any) -> set[str]:
  """Dotted names of the fields that do not matter, see `field`."""
  return {leaf.name for leaf in leaves(config) if not leaf.matters}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
  """Lines such as `strategy.entropy: 0.0 -> 0.01` for two nested dicts."""
  old, new = _flatten(before), _flatten(after)
  absent = object()
  return [
    f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
    for key in sorted(old | new)
    if old.get(key, absent) != new.get(key, absent)
  ]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted name -> value; an empty dict holds nothing."""
  flat: dict[str, Any] = {}
  for key, value in values.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat
