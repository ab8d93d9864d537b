import dataclasses
import math

import pytest
from absl import flags

from nasjax.core import config as config_lib
from nasjax.core.config import field
from nasjax.core.types import InputError


@dataclasses.dataclass(frozen=True)
class Strategy:
  learning_rate: float = field(0.01, "of Adam")
  baseline: float | None = field(None, "fixed baseline")
  rounds: int = field(10, "rounds")
  mode: str = field("best", "which child", ("best", "last"))
  normalize: bool = field(False, "advantages")


@dataclasses.dataclass(frozen=True)
class Data:
  path: str = field("", "file")
  target: str | None = field(None, "column")
  rows: int | None = field(None, "at most")
  fractions: tuple[float, ...] = field((0.6, 0.2, 0.2), "of the splits")
  names: tuple[str, ...] = field(("a", "b"), "columns")


@dataclasses.dataclass(frozen=True)
class Config:
  widths: tuple[int, ...] = field((8, 16), "units")
  strategy: Strategy = Strategy()
  data: Data = Data()


def parse(*arguments, config=None):
  config = Config() if config is None else config
  values = flags.FlagValues()
  config_lib.define_flags(config, values)
  rest = values(["run.py", *arguments])
  assert rest == ["run.py"]
  return config_lib.from_flags(config, values)


@pytest.mark.parametrize(
  ("argument", "section", "name", "value"),
  [
    ("--config.strategy.learning_rate=1", "strategy", "learning_rate", 1.0),
    ("--config.strategy.baseline=0.5", "strategy", "baseline", 0.5),
    ("--config.strategy.rounds=3", "strategy", "rounds", 3),
    ("--config.strategy.mode=last", "strategy", "mode", "last"),
    ("--config.strategy.normalize", "strategy", "normalize", True),
    ("--noconfig.strategy.normalize", "strategy", "normalize", False),
    ("--config.data.path=x,y.csv", "data", "path", "x,y.csv"),
    ("--config.data.target=label", "data", "target", "label"),
    ("--config.data.target=none", "data", "target", None),
    ("--config.data.rows=7", "data", "rows", 7),
    ("--config.data.fractions=1,0.5", "data", "fractions", (1.0, 0.5)),
    ("--config.data.names=p, q", "data", "names", ("p", "q")),
    ("--config.data.names=", "data", "names", ()),
  ],
)
def test_every_type_of_field_has_a_flag(argument, section, name, value):
  config = parse(argument)
  changed = getattr(getattr(config, section), name)
  assert changed == value and type(changed) is type(value)
  # Nothing else moves.
  part = dataclasses.replace(getattr(Config(), section), **{name: value})
  assert config == dataclasses.replace(Config(), **{section: part})


def test_no_flag_leaves_the_config_alone():
  config = Config(widths=(1,), strategy=Strategy(rounds=2))
  assert parse(config=config) == config


def test_only_flags_on_the_command_line_replace_what_a_preset_set():
  values = flags.FlagValues()
  config_lib.define_flags(Config(), values)
  values(["run.py", "--config.strategy.rounds=10"])  # given, though the default
  preset = Config(strategy=Strategy(rounds=99, learning_rate=0.5))
  config = config_lib.from_flags(preset, values)
  assert config.strategy == Strategy(rounds=10, learning_rate=0.5)


def test_none_takes_back_what_a_preset_set():
  preset = Config(strategy=Strategy(baseline=0.5))
  assert parse("--config.strategy.baseline=none", config=preset).strategy == Strategy()


@pytest.mark.parametrize("text", ["(8, 32)", "8,32", "[8,32,]", " 8 , 32 "])
def test_tuples_may_be_written_as_in_python(text):
  assert parse(f"--config.widths={text}").widths == (8, 32)


@pytest.mark.parametrize(
  "argument",
  [
    "--config.strategy.rounds=1.5",
    "--config.strategy.rounds=none",
    "--config.strategy.learning_rate=fast",
    "--config.strategy.mode=worst",
    "--config.strategy.normalize=maybe",
    "--config.widths=8,x",
    "--config.widths=8,,16",
    "--config.data.rows=many",
  ],
)
def test_wrong_values_are_refused_and_named(argument):
  name, _, value = argument[2:].partition("=")
  with pytest.raises(flags.IllegalFlagValueError) as error:
    parse(argument)
  assert name in str(error.value) and value in str(error.value)
  assert "expected" in str(error.value) or "should be" in str(error.value)


@pytest.mark.parametrize(
  "argument",
  [
    "--config.strategy.learning_rate=nan",
    "--config.strategy.baseline=inf",
    "--config.data.fractions=0.5,nan",
  ],
)
def test_numbers_that_are_not_finite_are_refused(argument):
  with pytest.raises(InputError, match=argument[2:].partition("=")[0]):
    parse(argument)


def test_description_gives_flag_value_and_help_of_every_field():
  rows = dict(config_lib.describe(Config()))
  assert len(rows) == len(list(config_lib.leaves(Config()))) == 11
  assert rows["--config.widths=8,16"] == "units"
  assert rows["--config.strategy.mode=best"] == "which child (best | last)"
  assert rows["--config.data.rows=none"] == "at most"
  # What is shown can be given back.
  assert parse(*(flag for flag in rows)) == Config()


def test_a_type_without_a_flag_is_the_developers_error():
  @dataclasses.dataclass(frozen=True)
  class Bad:
    table: dict = dataclasses.field(default_factory=dict)

  with pytest.raises(TypeError, match="table"):
    config_lib.define_flags(Bad(), flags.FlagValues())


def test_dict_round_trip():
  config = Config(widths=(), data=Data(target="y", fractions=(0.5, 0.5)))
  values = config_lib.to_dict(config)
  assert values["widths"] == [] and values["data"]["fractions"] == [0.5, 0.5]
  assert config_lib.from_dict(Config(), values) == config


def test_from_dict_names_unknown_and_missing_keys():
  values = config_lib.to_dict(Config())
  values["strategy"]["tempo"] = 1
  with pytest.raises(InputError, match=r"unknown config keys: strategy\.tempo$"):
    config_lib.from_dict(Config(), values)
  del values["strategy"]["tempo"], values["strategy"]["rounds"], values["widths"]
  with pytest.raises(
    InputError, match=r"missing config keys: widths, strategy\.rounds"
  ):
    config_lib.from_dict(Config(), values)


@pytest.mark.parametrize(
  ("section", "name", "value"),
  [
    ("strategy", "rounds", "3"),
    ("strategy", "rounds", True),
    ("strategy", "rounds", None),
    ("strategy", "mode", "worst"),
    ("strategy", "learning_rate", math.nan),
    ("data", "fractions", 0.5),
    ("data", "fractions", [0.5, "x"]),
  ],
)
def test_from_dict_refuses_values_of_another_type(section, name, value):
  values = config_lib.to_dict(Config())
  values[section][name] = value
  with pytest.raises(InputError, match=rf"{section}\.{name}") as error:
    config_lib.from_dict(Config(), values)
  assert "\n" not in str(error.value)


def test_fingerprint_follows_values_and_nothing_else():
  digest = config_lib.fingerprint(Config())
  assert len(digest) == 16 and int(digest, 16) >= 0
  assert config_lib.fingerprint(Config(strategy=Strategy())) == digest
  for other in (
    Config(widths=(8,)),
    Config(strategy=Strategy(learning_rate=0.02)),
    Config(data=Data(target="")),
  ):
    assert config_lib.fingerprint(other) != digest
  one, one_point = (Config(strategy=Strategy(learning_rate=x)) for x in (1, 1.0))
  assert config_lib.fingerprint(one) == config_lib.fingerprint(one_point)


def test_differences_name_the_fields():
  before = config_lib.to_dict(Config())
  after = config_lib.to_dict(Config(widths=(8,), strategy=Strategy(rounds=11)))
  assert config_lib.differences(before, after) == [
    "strategy.rounds: 10 -> 11",
    "widths: [8, 16] -> [8]",
  ]
  assert config_lib.differences(before, before) == []
  assert config_lib.differences({"a": None}, {}) == ["a: None -> absent"]
