"""Floating-point operations of a traced program: products and convolutions alone.

XLA's own `cost_analysis` counts the body of a scan once, however long it is.
"""

import math
from typing import Any

import jax
from jax.extend import core

from nasjax.networks import convolution


def count(function: Any, *arguments: Any) -> int:
  """Multiplications and additions in the matrix products of `function(*arguments)`.

  A scan counts as often as it is long, a branch as its dearest one, a while loop (whose
  length is not in the program) once. Elementwise work is left out.
  """
  return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: core.Jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    parameters = equation.params
    shapes = [_shape(variable) for variable in equation.invars]
    made = math.prod(_shape(equation.outvars[0])) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
      ((contracted, _), _) = parameters["dimension_numbers"]
      total += 2 * made * math.prod(shapes[0][axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      features = shapes[1][parameters["dimension_numbers"].rhs_spec[0]]
      total += 2 * made * math.prod(shapes[1]) // features
    elif equation.primitive in convolution.PRIMITIVES:
      shapes += [_shape(variable) for variable in equation.outvars]
      total += 2 * convolution.num_products(shapes, parameters["window"])
    else:
      inner = [_of(each) for value in parameters.values() for each in _jaxprs(value)]
      if equation.primitive.name == "cond":
        total += max(inner, default=0)
      else:
        total += sum(inner) * parameters.get("length", 1)
  return total


def _shape(variable: Any) -> tuple[int, ...]:
  return getattr(variable.aval, "shape", ())


def _jaxprs(value: Any) -> list[core.Jaxpr]:
  """The programs in a parameter: itself, one that is closed, or a tuple of them."""
  if isinstance(value, core.Jaxpr):
    return [value]
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, tuple | list):
    return [jaxpr for each in value for jaxpr in _jaxprs(each)]
  return []
