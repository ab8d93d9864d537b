"""REINFORCE with a controller that writes genotypes, the survey's strategy (MLPNAS).

Williams, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning", 1992; Zoph and Le 2017; the survey's sections 4.1, 4.2 and
appendix A.

Per round of P children with rewards r_i, advantages A_i = r_i - b and decisions a_it:

  (1)  L = -1/P sum_i A_i sum_t gamma^(T_i - t) log pi(a_it | a_i,<t) - beta H
  (2)  b <- m b + (1 - m) mean_i r_i            (b starts at the first round's mean)
  (2') b <- b + (1 - m) / (1 - m^t) (mean_i r_i - b)           in round t, before (1):
       the average without a bias to its start, the round's own reward included; rounds
       in which every child failed do not count
  (3)  r_i = utility_i + c |prediction_i - score_i|          (adversarial part)
  (4)  L_predictor = mean over all measured children of (prediction - score)^2

The utility is the score itself, or its rank: the part of all children measured so far
that it beats (ties count half). Accuracies of good children differ in the third
decimal and those of bad ones in the first; ranks teach from both.

Differences from the survey's program (BUILD.md lists them all): the loss selects the
decision that was drawn; every decision gets credit; discounting runs within a sequence;
the baseline is not cancelled by a z-score; Adam's state lives on across rounds; the
gradient is clipped by its global norm (Keras clips each variable's).

Differences from the survey: the policy learns from the last round alone, not from all
children so far, which an older policy drew (the predictor does learn from all).
Equation (1) is exact for the first of a round's updates; the others take the same
children as if they were still drawn from the policy, as the survey's ten epochs do. The
same holds for children that `sample_new` drew from the prior because the policy had
nothing new to offer: they are judged like any, which pulls a collapsed policy out.

A failed child (non-finite score) enters neither the gradient nor the baseline nor the
predictor; the history keeps it, so it is not drawn again.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from nasjax.core.types import InputError
from nasjax.spaces.base import Space
from nasjax.strategies.base import (
  History,
  Strategy,
  empty_history,
  remember,
  sample_new,
)
from nasjax.strategies.controller import (
  Controller,
  independent_controller,
  lstm_controller,
)


class ReinforceHyper(NamedTuple):
  """Scalars that may change without another compilation; see `reinforce`."""

  learning_rate: Any
  learning_rate_decay: Any
  clip_norm: Any
  baseline_decay: Any
  fixed_baseline: Any  # NaN when there is none
  discount: Any
  entropy: Any
  predictor: Any
  adversarial: Any

  def rate(self, step: Any) -> Any:
    """Adam's learning rate at a step."""
    return self.learning_rate / (1.0 + self.learning_rate_decay * step)

  def optimizer(self) -> optax.GradientTransformation:
    """Adam on clipped gradients, with Keras's epsilon."""
    return optax.chain(
      optax.clip_by_global_norm(self.clip_norm), optax.adam(self.rate, eps=1e-7)
    )


class ReinforceState(NamedTuple):
  """State of REINFORCE.

  Attributes:
    hyper: float32 scalars: arrays, so that a search can be vmapped over them, and the
      compiled ask and tell are the same for all of their values.
    params: of the controller.
    optimizer: Adam's state.
    baseline: scalar b of equation (2).
    num_rounds: scalar int32, rounds so far in which a child was measured.
    history: every child so far.
  """

  hyper: ReinforceHyper
  params: Any
  optimizer: Any
  baseline: jax.Array
  num_rounds: jax.Array
  history: History


def policy_loss(
  controller: Controller,
  params: Any,
  genotypes: jax.Array,
  advantages: jax.Array,
  *,
  discount: Any = 1.0,
  entropy: Any = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Equation (1).

  Args:
    controller: the policy.
    params: its parameters.
    genotypes: `[P, D]` int32, drawn from the policy.
    advantages: `[P]`; 0 leaves a child out.
    discount: gamma; 1 gives every decision the full advantage.
    entropy: beta.

  Returns:
    The loss, and the mean entropy of a sequence (nats).
  """
  chex.assert_rank([genotypes, advantages], [2, 1])
  chex.assert_equal_shape_prefix([genotypes, advantages], 1)
  log_p_PD, entropy_PD, is_choice_PD = jax.vmap(controller.log_probs, (None, 0))(
    params, genotypes
  )
  # T_i counts real decisions, so that the padding after the end discounts nothing.
  length_P1 = is_choice_PD.sum(-1, keepdims=True)
  steps_left_PD = jnp.maximum(length_P1 - 1 - jnp.arange(genotypes.shape[1])[None], 0)
  returns_PD = advantages[:, None] * discount**steps_left_PD
  mean_entropy = entropy_PD.sum(-1).mean()
  loss = -(returns_PD * log_p_PD).sum(-1).mean() - entropy * mean_entropy
  return loss, mean_entropy


def rank_utility(scores: jax.Array, reference: jax.Array) -> jax.Array:
  """The part of `reference [N]` that each of `scores [P]` beats; ties count half.

  Entries of the reference that are not finite do not count. Returns `[P]` in [0, 1].
  """
  measured = jnp.isfinite(reference)
  scores, reference = scores[:, None], reference[None]
  beaten = (scores > reference) + 0.5 * (scores == reference)
  return jnp.where(measured, beaten, 0.0).sum(-1) / jnp.maximum(measured.sum(), 1)


def reinforce(
  space: Space,
  *,
  population: int = 10,
  max_evaluations: int = 1000,
  policy: Literal["lstm", "independent"] = "lstm",
  hidden: int = 128,
  learning_rate: float = 0.01,
  learning_rate_decay: float = 0.1,
  clip_norm: float = 1.0,
  updates: int = 10,
  baseline_decay: float = 0.9,
  corrected: bool = False,
  fixed_baseline: float | None = None,
  utility: Literal["score", "rank"] = "rank",
  discount: float = 1.0,
  entropy: float = 0.0,
  predictor: float = 1.0,
  adversarial: float = 0.0,
  distinct: bool = True,
) -> Strategy:
  """REINFORCE with a controller.

  Defaults are the survey's where it has one, but for the baseline (its 0.5), the
  discount (0.9) and the utility (the score): see BUILD.md for why.

  Args:
    space: the space.
    population: P, children of a round.
    max_evaluations: N, children remembered for repeats and for the predictor.
    policy: "lstm", or "independent" logits for each decision.
    hidden: units of the LSTM.
    learning_rate: Adam's.
    learning_rate_decay: d; update i uses `learning_rate / (1 + d i)`, as Keras does.
    clip_norm: largest global norm of a gradient.
    updates: gradient steps on each round's children.
    baseline_decay: m of equation (2).
    corrected: the baseline is equation (2'), instead of (2).
    fixed_baseline: the survey's 0.5, instead of equation (2).
    utility: what is rewarded, see the module.
    discount: gamma of equation (1).
    entropy: beta of equation (1).
    predictor: weight of equation (4); 0 leaves the accuracy predictor out.
    adversarial: c of equation (3); 0 is off.
    distinct: ask nothing twice; without it the policy's draws are asked as they come,
      and equation (1) is exact.

  Returns:
    A `Strategy`; `info` has `baseline`, `loss`, `entropy`, `learning_rate`,
    `predictor_loss` and, with a predictor, `predicted [P]`: the scores predicted before
    anything was learned from this round.

  Raises:
    InputError: when the adversarial part is asked for without a predictor, for an
      unknown policy or utility, or a number that is not positive.
  """
  if adversarial and not predictor:
    raise InputError("strategy.adversarial needs the accuracy predictor: predictor > 0")
  for what, given, known in (
    ("policy", policy, ("lstm", "independent")),
    ("utility", utility, ("score", "rank")),
  ):
    if given not in known:
      raise InputError(f"unknown {what} {given!r}; there are {', '.join(known)}")
  if min(population, max_evaluations, hidden, updates) < 1:
    raise InputError(
      "reinforce: population, max_evaluations, hidden and updates must be positive, "
      f"got {population}, {max_evaluations}, {hidden} and {updates}"
    )
  if policy == "lstm":
    controller = lstm_controller(space, hidden=hidden)
  else:
    controller = independent_controller(space)
  values = ReinforceHyper(
    learning_rate=learning_rate,
    learning_rate_decay=learning_rate_decay,
    clip_norm=clip_norm,
    baseline_decay=baseline_decay,
    fixed_baseline=float("nan") if fixed_baseline is None else fixed_baseline,
    discount=discount,
    entropy=entropy,
    predictor=predictor,
    adversarial=adversarial,
  )
  # Run op by op, the many small draws would each be compiled.
  init_params = jax.jit(controller.init)
  predict_all = jax.vmap(controller.predict, in_axes=(None, 0))

  def init(key: jax.Array) -> ReinforceState:
    hyper = jax.tree.map(jnp.float32, values)
    params = init_params(key)
    return ReinforceState(
      hyper=hyper,
      params=params,
      optimizer=hyper.optimizer().init(params),
      baseline=jnp.float32(jnp.nan),
      num_rounds=jnp.int32(0),
      history=empty_history(max_evaluations, space.length),
    )

  def ask(key, state):
    def draw(key):
      return controller.sample(state.params, key)

    if not distinct:
      return jax.vmap(draw)(jax.random.split(key, population)), state
    return sample_new(key, draw, space, state.history, population), state

  def predictor_loss(params, history):  # (4)
    measured = jnp.isfinite(history.scores)
    genotypes = jnp.maximum(history.genotypes, 0)  # empty rows are masked below
    target = jnp.where(measured, jnp.clip(history.scores, 0.0, 1.0), 0.0)
    error = jnp.square(predict_all(params, genotypes) - target)
    return jnp.where(measured, error, 0.0).sum() / jnp.maximum(measured.sum(), 1)

  def tell(key, state, genotypes, scores):
    del key
    hyper, optimizer = state.hyper, state.hyper.optimizer()
    measured = jnp.isfinite(scores)
    # R2 has no lower bound; one hopeless child must not drown the others.
    scores = jnp.where(measured, jnp.clip(scores, -1.0, 1.0), jnp.nan)
    history = remember(state.history, genotypes, scores)
    known = jnp.where(measured, scores, 0.0)
    reward = rank_utility(known, history.scores) if utility == "rank" else known
    info = {}
    if predictor:
      info["predicted"] = predict_all(state.params, genotypes)
      reward = reward + hyper.adversarial * jnp.abs(info["predicted"] - known)  # (3)
    num_rounds = state.num_rounds + measured.any()
    count = jnp.maximum(measured.sum(), 1)
    mean = jnp.where(measured, reward, 0.0).sum() / count
    if fixed_baseline is None:
      baseline = jnp.where(jnp.isnan(state.baseline), mean, state.baseline)
      decay = hyper.baseline_decay
      step = 1.0 - decay
      if corrected:
        step = step / (1.0 - decay ** jnp.maximum(num_rounds, 1))  # (2')
      moved = baseline + step * (mean - baseline)  # (2)
      next_baseline = jnp.where(measured.any(), moved, state.baseline)
      baseline = next_baseline if corrected else baseline
    else:
      baseline = next_baseline = hyper.fixed_baseline
    advantage = jnp.where(measured, reward - baseline, 0.0)

    def loss_fn(params):
      loss, mean_entropy = policy_loss(  # (1)
        controller,
        params,
        genotypes,
        advantage,
        discount=hyper.discount,
        entropy=hyper.entropy,
      )
      fit = predictor_loss(params, history) if predictor else jnp.float32(0)
      return loss + hyper.predictor * fit, (loss, mean_entropy, fit)

    def update(carry, _):
      params, opt_state = carry
      gradient, report = jax.grad(loss_fn, has_aux=True)(params)
      step, opt_state = optimizer.update(gradient, opt_state)
      return (optax.apply_updates(params, step), opt_state), report

    (params, opt_state), reports = jax.lax.scan(
      update, (state.params, state.optimizer), length=updates
    )
    loss, mean_entropy, fit = (report[-1] for report in reports)
    info |= {
      "baseline": baseline,
      "loss": loss,
      "entropy": mean_entropy,
      "predictor_loss": fit,
      "learning_rate": hyper.rate(history.num_added // population * updates),
    }
    after = ReinforceState(hyper, params, opt_state, next_baseline, num_rounds, history)
    return after, info

  return Strategy(init, ask, tell)
