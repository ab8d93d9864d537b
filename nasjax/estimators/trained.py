"""Estimation by really training every child, as the survey does (sections 4 and 5).

A child's score is its validation metric over the epochs it was trained: by default the
survey's mean weighted by the epoch's number, so that fast learners count for more.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from nasjax.core import keys
from nasjax.core.types import Evaluation, InputError
from nasjax.data.base import Dataset
from nasjax.estimators.base import Estimator
from nasjax.estimators.successive_halving import bracket_sizes
from nasjax.networks import mlp
from nasjax.spaces.mlp_chain import MLPChain
from nasjax.training import planned as planned_lib
from nasjax.training import profile, shared_weights
from nasjax.training import rungs as rungs_lib
from nasjax.training.children import Child
from nasjax.training.losses import get_task
from nasjax.training.packing import Layout, Plan
from nasjax.training.population import device_data, population_trainer, profile_for
from nasjax.training.step import SCORES, Hyper


def evaluation_of(
  children: Sequence[Child],
  scores: Sequence[float],
  num_features: int,
  num_outputs: int,
  shared_layers: Sequence[int | None],
) -> Evaluation:
  """The `Evaluation` of trained children, as `trained` gives it.

  Args:
    children: P of them.
    scores: `[P]`.
    num_features: F.
    num_outputs: C.
    shared_layers: `[P]` layers that each began with shared weights.
  """
  sizes = num_features, num_outputs
  info = {
    "epochs_run": [child.epochs_run for child in children],
    "num_params": [mlp.num_params(child.layers, *sizes) for child in children],
    "flops": [mlp.flops(child.layers, *sizes) for child in children],
    "failure": [child.failure for child in children],
    "shared_layers": list(shared_layers),
    "stopped_at_rung": [child.stopped_at_rung for child in children],
    "bracket": [child.bracket for child in children],
  }
  return Evaluation(
    score=np.asarray(scores, np.float32),
    cost=np.asarray([child.seconds for child in children], np.float32),
    curve=np.stack([child.curve for child in children]),
    info=info,
  )


class TrainedState(NamedTuple):
  """What one round leaves to the next.

  Attributes:
    shared: weights by bigram, empty without one-shot.
    halving: by bracket, what earlier children reached at each rung; None without rungs.
    planned: what plans know: programs compiled in this search, and the device.
  """

  shared: shared_weights.SharedWeights
  halving: tuple[rungs_lib.Halving, ...] | None
  planned: planned_lib.Planned


def trained(
  space: MLPChain,
  dataset: Dataset,
  *,
  epochs: int = 10,
  batch_size: int = 32,
  learning_rate: float = 1e-3,
  final_rate: float = 1.0,
  patience: int = 3,
  score: str = "weighted",
  one_shot: shared_weights.Rule = "off",
  rungs: Sequence[int] = (),
  eta: int = 3,
  halving: rungs_lib.Kind = "successive",
  layout: Layout = "auto",
  device: str = "measured",
  num_devices: int | None = None,
  memory_limit_gb: float | None = None,
  compute_dtype: str = "float32",
  share_programs: bool = False,
  trainer: Callable[..., Callable[..., list[Child]]] = population_trainer,
  log: Callable[[str], None] = lambda message: None,
  on_child: Callable[[int, Child, float], None] | None = None,
  on_plan: Callable[[Plan, int], None] | None = None,
) -> Estimator:
  """Trains every child on the train split and scores it on the validation split.

  Args:
    space: the space of the genotypes.
    dataset: the splits; `test` is not looked at.
    epochs: T, at most.
    batch_size: B.
    learning_rate: Adam's.
    final_rate: the rate falls linearly to this part of itself over the epochs; at 0 a
      child is measured without the noise of the last steps, as it will be retrained.
    patience: epochs without a lower validation loss before a child stops.
    score: "weighted" (the survey's), "best" or "last" epoch.
    one_shot: share weights by bigram, see `training.shared_weights`.
    rungs: epochs, rising, the last of them all `epochs`: after each of the others a
      child goes on only if its highest validation metric until then is among the best
      1 / eta of its round and of all so far (`training.rungs` has the rule). Empty to
      train all to the end.
    eta: see rungs; at least 2.
    halving: "successive", or "hyperband" (Li et al., JMLR 2018): a round is shared out
      over brackets as `successive_halving.bracket_sizes` says, drawn by genotype, and a
      child in bracket b is compared at rung b for the first time, in its bracket only.
      All of a round train to a rung together, whichever their brackets are.
    layout: see `training.packing`.
    device: what plans suppose of the device: "measured", or out of `profile.GIVEN`.
    num_devices: see `training.population`, as are the next four.
    memory_limit_gb: of each device.
    compute_dtype: of activations and gradients.
    share_programs: with other trainers in this process.
    trainer: trains the children, with the arguments of `population_trainer`.
    log: called with a line when a population does not fit and is split.
    on_child: called as `(i, child, score)` when child i of a round is done, in the
      order in which they are.
    on_plan: called as `(plan, rung)` before the children of a round are trained, with
      rungs before those that are left are trained to each.

  Returns:
    An `Estimator` (host side). Its state is a `TrainedState`. `Evaluation.info` has
    `epochs_run`, `num_params`, `flops`, `failure`, `shared_layers`, `stopped_at_rung`
    and `bracket`. The cost is in seconds of run time.

  With rungs a child's curve depends on who else is in its round. Whoever goes on is
  trained on from where it was, in whatever program the planner then chooses. A child
  that a rung stopped was measured and has not failed: its curve is NaN from there on,
  and its score is `score`'s over the epochs that it ran, as of one that ran out of
  patience. With "best" it is hardly ever the search's best: others had more at that
  rung. With "weighted" or "last" it may be, since a score over fewer epochs is another
  measure. With a `final_rate` below 1 the rate falls over all epochs, rungs or not, so
  a stopped child is not measured at the low rates at which those that went on end.
  Rungs prefer what learns fast.

  Raises:
    InputError: for a score, a rule or a device that does not exist, or rungs that
      cannot be.
  """
  if score not in SCORES:
    raise InputError(f"unknown score {score!r}; there are {', '.join(SCORES)}")
  if one_shot not in ("off", "last", "best"):
    raise InputError(f"unknown one-shot rule {one_shot!r}; there are off, last, best")
  if device not in profile.DEVICES:
    raise InputError(
      f"unknown device {device!r}; there are {', '.join(profile.DEVICES)}"
    )
  first_halving = rungs_lib.begin(rungs, eta, epochs, halving) if rungs else None
  num_features, num_outputs = dataset.num_features, dataset.num_outputs
  train = trainer(
    space,
    get_task(dataset.task),
    device_data(dataset.train, dataset.valid),
    num_outputs,
    epochs=epochs,
    batch_size=batch_size,
    layout=layout,
    num_devices=num_devices,
    memory_limit_gb=memory_limit_gb,
    compute_dtype=compute_dtype,
    share_programs=share_programs,
    log=log,
  )
  score_of = jax.jit(SCORES[score])

  def child_score(child: Child) -> float:
    return float("nan") if child.failure else float(score_of(child.curve))

  def init(key: jax.Array) -> TrainedState:
    del key
    believed = profile_for(layout) if device == "measured" else profile.GIVEN[device]
    planned = planned_lib.begin(space, believed)
    return TrainedState(shared_weights.empty(), first_halving, planned)

  def brackets_of(key, genotypes):
    """`[P]` the bracket of each child of a round; None where there are no brackets."""
    if not rungs or halving != "hyperband":
      return None
    (bracket_key,) = keys.named(key, "brackets")
    drawn = jax.vmap(jax.random.uniform)(keys.for_genotypes(bracket_key, genotypes))
    sizes = bracket_sizes(len(genotypes), len(rungs), eta)
    brackets = np.empty(len(genotypes), int)
    brackets[np.argsort(drawn)] = np.repeat(np.arange(len(sizes)), sizes)
    return brackets

  def compare(rules, rung, values, brackets):
    """Who of those at a rung goes on, `[Q]`, and the rules that have seen them."""
    passes, rules = np.ones(len(values), bool), list(rules)
    for first in range(min(rung + 1, len(rules))):
      here = slice(None) if brackets is None else brackets == first
      passes[here], rules[first] = rules[first].choose(rung - first, values[here])
    return passes, tuple(rules)

  def halved(key, genotypes, rules, planned, load, on_child):
    """The children of a round, trained to one rung after another, and the new rules and
    plans' knowledge."""
    brackets = brackets_of(key, genotypes)
    children: dict[int, Child] = {}
    seconds = np.zeros(len(genotypes))
    left, going_on = np.arange(len(genotypes)), list[Child]()
    stages = tuple(rungs) or (epochs,)
    for rung, stop_after in enumerate(stages):
      final = rung == len(stages) - 1
      before = seconds.copy()
      plans: list[Plan] = []

      def planning(plan, rung=rung, plans=plans):
        plans.append(plan)
        if on_plan:
          on_plan(plan, rung)

      def finish(place, child, left=left, before=before):
        i = left[place]
        children[i] = child._replace(
          seconds=child.seconds + before[i],
          bracket=None if brackets is None else int(brackets[i]),
        )
        on_child(i, children[i])

      trained_to = train(
        key,
        genotypes[left],
        Hyper(learning_rate, patience, final_rate=final_rate, stop_after=stop_after),
        load=load,
        on_child=finish if final else None,
        on_plan=planning,
        before=going_on,
        keep=not final,
        planned=planned,
      )
      for plan in plans:
        planned = planned_lib.after(planned, plan, space)
      if final:
        break
      there = np.array([child.epochs_run == stop_after for child in trained_to])
      there &= [child.failure is None for child in trained_to]
      passes = np.zeros(len(left), bool)
      best = [np.nanmax(trained_to[place].curve) for place in np.flatnonzero(there)]
      passes[there], rules = compare(
        rules,
        rung,
        np.array(best, np.float32),
        None if brackets is None else brackets[left[there]],
      )
      stopped = np.array([child.stopped for child in trained_to])
      for place, child in enumerate(trained_to):
        if stopped[place] or not passes[place]:
          done = child._replace(stopped_at_rung=not stopped[place], paused=None)
          finish(place, done)
        seconds[left[place]] += child.seconds
      on = passes & ~stopped
      left, going_on = left[on], [trained_to[place] for place in np.flatnonzero(on)]
      if not going_on:
        break
    return [children[i] for i in range(len(genotypes))], rules, planned

  def estimate(
    key: jax.Array,
    state: TrainedState,
    genotypes: np.ndarray,
    fidelity: int | None = None,
  ) -> tuple[TrainedState, Evaluation]:
    if fidelity not in (None, epochs):
      raise InputError(
        f"this estimator trains {epochs} epochs; build another one for {fidelity}"
      )
    shared, rules, planned = state

    def load(layers, fresh):
      return shared_weights.load(shared, layers, fresh)

    def report(i: int, child: Child) -> None:
      if on_child:
        on_child(i, child, child_score(child))

    genotypes, load_shared = np.asarray(genotypes), load if shared.weights else None
    children, rules, planned = halved(
      key, genotypes, rules, planned, load_shared, report
    )
    scores = [child_score(child) for child in children]
    loaded = [shared_weights.num_shared(shared, child.layers) for child in children]
    if one_shot != "off":
      trained_children = [
        (child.layers, child.weights, value)
        for child, value in zip(children, scores)
        if child.weights is not None
      ]
      shared = shared_weights.store(shared, trained_children, one_shot)
    evaluation = evaluation_of(children, scores, num_features, num_outputs, loaded)
    return TrainedState(shared, rules, planned), evaluation

  return Estimator(init, estimate)
