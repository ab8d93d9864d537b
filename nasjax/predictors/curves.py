"""Learning-curve extrapolation: what a child would score had it been trained longer.

Domhan, Springenberg and Hutter, "Speeding up automatic hyperparameter optimization of
deep neural networks by extrapolation of learning curves", IJCAI 2015, table 1; the
survey's section 2.3. Every family is a value that falls short of an asymptote,

    f(x) = c - a g(x)                             (1)

with x the epoch, from 1, and the shortfall g falling from 1 towards 0:

    pow3     g = x^-alpha                         (2)
    exp3     g = exp(-r (x - 1))                  (3)
    weibull  g = exp(-r (x^delta - 1))            (4)
    mmf      g = (1 + v) / (1 + v x^delta)        (5)
    hill3    g = 1 / (1 + v x^eta), and a = c     (6)
    ilog2    g = log 2 / log(x + 1)               (7)

(3) is (4) with delta = 1, one parameter less than the paper's form. (4) holds its
Janoschek and exp4 too, and (6) its log power: the same curves in other letters. g is 1
at the first epoch (but for hill3, which starts from zero at epoch 0), so that a is the
rise that is still to come there, and c and a have bounds that hold for every accuracy.

Differences from the paper: a bounded least-squares fit of each family in place of a
posterior sampled over all of them, and weights (8) from the fits; a curve may fall (a
is then negative), where the paper expects it to rise; pow4, whose curves the other
families come near to, is left out, and so are vapor pressure and log log linear, which
grow without an asymptote.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core.types import InputError

# A little wider than what an accuracy can be: a curve that lies flat at 0 or 1 is then
# inside the bounds.
_ASYMPTOTE = (-0.02, 1.02)
_RISE = (-1.04, 1.04)
_LARGEST_LOGIT = 8.0  # how near a shape parameter may come to its bound
_GRID = {1: 16, 2: 8}  # starting points of each shape parameter, by their number
_TINY = 1e-12


class Family(NamedTuple):
  """A parametric family of saturating curves, equation (1).

  Attributes:
    shortfall: g: epochs `[k]` and each shape parameter -> `[k]`.
    shapes: the bounds of each shape parameter, both positive.
    from_zero: whether a is c, so that the curve starts from zero at epoch 0.
  """

  shortfall: Callable[..., jax.Array]
  shapes: tuple[tuple[float, float], ...]
  from_zero: bool = False

  @property
  def num_parameters(self) -> int:
    """How many parameters are fitted."""
    return len(self.shapes) + (1 if self.from_zero else 2)


def _pow3(x, alpha):
  return jnp.exp(-alpha * jnp.log(x))  # (2)


def _exp3(x, r):
  return jnp.exp(-r * (x - 1))  # (3)


def _weibull(x, r, delta):
  return jnp.exp(-r * jnp.expm1(delta * jnp.log(x)))  # (4)


def _mmf(x, v, delta):
  return (1 + v) / (1 + v * jnp.exp(delta * jnp.log(x)))  # (5)


def _hill3(x, v, eta):
  return 1 / (1 + v * jnp.exp(eta * jnp.log(x)))  # (6)


def _ilog2(x):
  return np.log(2.0) / jnp.log(x + 1)  # (7)


FAMILIES = {
  "pow3": Family(_pow3, ((0.05, 5.0),)),
  "exp3": Family(_exp3, ((0.002, 5.0),)),
  "weibull": Family(_weibull, ((0.002, 5.0), (0.2, 3.0))),
  "mmf": Family(_mmf, ((0.005, 20.0), (0.2, 4.0))),
  "hill3": Family(_hill3, ((0.005, 100.0), (0.1, 4.0)), from_zero=True),
  "ilog2": Family(_ilog2, ()),
}


class Extrapolation(NamedTuple):
  """What the fitted families say of each child.

  Attributes:
    predicted: `[P]` value at the target epoch, in [0, 1]; the last value where no
      family could be fitted, NaN for a failed child.
    residual_std: `[P]` root of the families' mean squared residuals, weighted as the
      prediction is; NaN where none was fitted. It says how well the epochs that were
      run are met, and is near 0 for as few as there are parameters: not how far off
      the prediction may be.
    by_family: `[P, F]` each family's value there; NaN where it was left out.
    weights: `[P, F]` of the families in `predicted`; they sum to 1, or are all 0 where
      none was fitted.
  """

  predicted: jax.Array
  residual_std: jax.Array
  by_family: jax.Array
  weights: jax.Array


def extrapolate(
  curves: jax.Array | np.ndarray,
  target_epoch: int | jax.Array,
  *,
  families: Sequence[str] = tuple(FAMILIES),
  noise: float = 0.005,
  iterations: int = 20,
) -> Extrapolation:
  """Extrapolates learning curves to a later epoch.

  Each family is fitted to each curve by least squares, and needs as many epochs as it
  has parameters. Those that were fitted, with p parameters to n epochs, are averaged
  with weights like those of the Bayesian information criterion,

    w ~ (RSS / n + noise^2)^(-n / 2) n^(-p / 2)    (8)

  Args:
    curves: `[P, k]` validation accuracy in [0, 1] at epochs 1 to k. A value that is
      not finite is an epoch that was not run; if the first is one, the child failed.
    target_epoch: T, the epoch to predict; may be traced.
    families: names of `FAMILIES`; static.
    noise: standard deviation of an accuracy that no family has to explain, so that one
      that happens to meet every point does not take all the weight. Over N validation
      rows an accuracy q has sqrt(q (1 - q) / N) by chance alone.
    iterations: of Levenberg-Marquardt, after a grid of starting points; static.

  Returns:
    The `Extrapolation`, in float32.

  Raises:
    InputError: for curves that are not `[P, k]`, an unknown family or none, a target
      before the first epoch, or settings that are not positive.
  """
  if jnp.ndim(curves) != 2 or jnp.shape(curves)[1] < 1:
    raise InputError(f"learning curves must be [P, k], got {jnp.shape(curves)}")
  if not families or any(name not in FAMILIES for name in families):
    known = ", ".join(FAMILIES)
    raise InputError(f"families must be among {known}, got {tuple(families)}")
  if not isinstance(target_epoch, jax.core.Tracer) and not target_epoch >= 1:
    raise InputError(f"the target epoch must be 1 or later, got {target_epoch}")
  if not noise > 0 or iterations < 1:
    raise InputError(
      f"noise and iterations must be positive, got {noise} and {iterations}"
    )
  curves = jnp.asarray(curves, jnp.float32)
  target = jnp.asarray(target_epoch, jnp.float32)
  return _extrapolate(curves, target, jnp.float32(noise), tuple(families), iterations)


@partial(jax.jit, static_argnames=("families", "iterations"))
def _extrapolate(curves, target, noise, families, iterations):
  def child(curve):
    return _extrapolate_one(curve, target, noise, families, iterations)

  return jax.vmap(child)(curves)


def _extrapolate_one(curve, target, noise, families, iterations) -> Extrapolation:
  run = jnp.isfinite(curve)
  y, mask = jnp.where(run, curve, 0.0), run.astype(curve.dtype)
  last = y[jnp.where(run, jnp.arange(len(y)), 0).max()]
  n, x = jnp.maximum(mask.sum(), 1), _epochs(y)
  values, log_weights, mean_squares, fitted = [], [], [], []
  for family in (FAMILIES[name] for name in families):
    logits, p = _fit(family, y, mask, iterations), family.num_parameters
    g = _shortfall(family, logits, x)
    c, a = _linear(family, g, y, mask)
    values.append(c - a * _shortfall(family, logits, target[None])[0])  # (1)
    mean_squares.append(jnp.square(mask * (c - a * g - y)).sum() / n)
    variance = mean_squares[-1] + noise**2
    log_weights.append(-(n * jnp.log(variance) + p * jnp.log(n)) / 2)  # (8)
    fitted.append((n >= p) & run[0])
  known, by_family = jnp.stack(fitted), jnp.clip(jnp.stack(values), 0.0, 1.0)
  none = ~known.any()
  # Where none is known the softmax means nothing; then nothing of it is read.
  weights = jax.nn.softmax(jnp.where(known, jnp.stack(log_weights), -jnp.inf))
  weights = jnp.where(known, weights, 0.0)
  predicted = jnp.where(none, jnp.clip(last, 0.0, 1.0), (weights * by_family).sum())
  spread = jnp.sqrt((weights * jnp.stack(mean_squares)).sum())
  return Extrapolation(
    jnp.where(run[0], predicted, jnp.nan),
    jnp.where(none, jnp.nan, spread),
    jnp.where(known, by_family, jnp.nan),
    weights,
  )


def _epochs(curve):
  return jnp.arange(1, len(curve) + 1, dtype=curve.dtype)


def _shortfall(family, logits, x):
  """g `[k]` for shape parameters inside their bounds, given unbounded `[q]`."""
  if not family.shapes:
    return family.shortfall(x)
  low, high = jnp.log(jnp.array(family.shapes, x.dtype)).T
  shapes = jnp.exp(low + (high - low) * jax.nn.sigmoid(logits))
  return family.shortfall(x, *shapes)


def _linear(family, g, y, mask):
  """The c and a in their bounds with the least squares for a given g `[k]`.

  If one meets its bound the other is the best beside that bound.
  """
  if family.from_zero:
    h = mask * (1 - g)
    c = jnp.clip((h * y).sum() / (h * h).sum(), *_ASYMPTOTE)
    return c, c
  n = jnp.maximum(mask.sum(), 1)
  g_mean, y_mean = (mask * g).sum() / n, (mask * y).sum() / n
  centred = mask * (g - g_mean)
  a = -(centred * (y - y_mean)).sum() / jnp.maximum((centred * centred).sum(), _TINY)
  c = jnp.clip(y_mean + jnp.clip(a, *_RISE) * g_mean, *_ASYMPTOTE)
  a = (mask * g * (c - y)).sum() / jnp.maximum((mask * g * g).sum(), _TINY)
  return c, jnp.clip(a, *_RISE)


def _fit(family, y, mask, iterations):
  """Unbounded shape parameters `[q]` of the best fit: a grid, then damped steps.

  c and a are functions of the shape (variable projection, Golub and Pereyra 1973), so
  that only q = 0, 1 or 2 parameters are searched for.
  """
  x, num = _epochs(y), len(family.shapes)

  def residuals(logits):
    g = _shortfall(family, logits, x)
    c, a = _linear(family, g, y, mask)
    return mask * (c - a * g - y)  # (1)

  def rss_of(logits):
    return jnp.square(residuals(logits)).sum()

  if not num:
    return jnp.zeros(0, y.dtype)
  units = (np.arange(_GRID[num]) + 0.5) / _GRID[num]
  units = np.array(list(itertools.product(units, repeat=num)), np.float32)
  grid = jnp.asarray(np.log(units / (1 - units)))
  start_rss = jax.vmap(rss_of)(grid)
  state = grid[start_rss.argmin()], start_rss.min(), jnp.full_like(y[0], 1e-2)

  def step(_, state):
    logits, rss, damping = state
    jacobian, r = jax.jacfwd(lambda z: (residuals(z),) * 2, has_aux=True)(logits)
    normal = (jacobian[:, :, None] * jacobian[:, None, :]).sum(0)
    gradient = (jacobian * r[:, None]).sum(0)
    change = _solve(normal, 1 + damping, gradient)
    tried = jnp.clip(logits - change, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    tried_rss = rss_of(tried)
    better = tried_rss < rss  # not when it is NaN
    return (
      jnp.where(better, tried, logits),
      jnp.where(better, tried_rss, rss),
      jnp.clip(damping * jnp.where(better, 0.2, 5.0), 1e-6, 1e6),
    )

  return jax.lax.fori_loop(0, iterations, step, state)[0]


def _solve(normal, growth, right):
  """Solves for `[q]`, q = 1 or 2, with the diagonal `growth` times as large.

  Written out: a batch of these is then elementwise work, not a call of LAPACK a child.
  """
  diagonal = jnp.diagonal(normal) * growth + _TINY
  if len(right) == 1:
    return right / diagonal
  off = normal[0, 1]
  determinant = jnp.maximum(diagonal[0] * diagonal[1] - off * off, _TINY**2)
  return (diagonal[::-1] * right - off * right[::-1]) / determinant
