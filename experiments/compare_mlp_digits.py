"""Search strategies on our own table: every MLP chain of up to three layers on digits.

The table comes with the package (`build_mlp_table` makes it), so nothing is downloaded.
Every strategy searches 22,764 chains by their validation accuracy after the last epoch.

Command: python run.py --experiment=compare_mlp_digits
Result: 1 min 48 s on two idle CPU cores, compilation included; README has the table.
"""

import dataclasses

from experiments import common_compare
from experiments.common_compare import CompareConfig, Protocol
from nasjax.core.config import field
from nasjax.data import benchmarks
from nasjax.runtime import Run

_EVALUATIONS = 100  # of a search, by default


@dataclasses.dataclass(frozen=True)
class Config(CompareConfig):
  """Configuration of `compare_mlp_digits`."""

  budget_evaluations: int | None = field(
    None, f"of a search, in full evaluations; {_EVALUATIONS} where no budget is given"
  )
  epochs: int | None = field(None, "fidelity of the search; none for the full one")

  def smoke(self) -> "Config":
    """The seconds-long version that the tests run end to end."""
    return dataclasses.replace(
      self,
      strategies=("random_search", "evolution"),
      seeds=4,
    )


def run(config: Config, run: Run) -> None:
  """Runs the experiment."""
  common_compare.check(config)
  benchmark = benchmarks.embedded("mlp_digits")
  limits = common_compare.budget(config, (_EVALUATIONS, "evaluations"))
  protocol = Protocol("validation", "digits", config.epochs, *limits, ("digits",))
  common_compare.compare(config, run, benchmark, [protocol])
