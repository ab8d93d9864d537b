"""Random changes to training images, inside a compiled step; images `[N, H, W, C]`."""

import jax
import jax.numpy as jnp

from nasjax.core import keys


def crop_and_flip(key: jax.Array, x: jax.Array, padding: int = 4) -> jax.Array:
  """Each image from a random place in itself with zeros around, half of them mirrored.

  Args:
    key: typed key.
    x: `[N, H, W, C]`.
    padding: rows and columns of zeros on each side; 0 leaves images in their place.
  """
  place_key, flip_key = keys.named(key, "place", "flip")
  count, height, width, channels = x.shape
  around = (padding, padding)
  padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
  place = jax.random.randint(place_key, (count, 2), 0, 2 * padding + 1)

  def crop(image, place):
    return jax.lax.dynamic_slice(
      image, (place[0], place[1], 0), (height, width, channels)
    )

  x = jax.vmap(crop)(padded, place)
  flip = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
  return jnp.where(flip, x[:, :, ::-1], x)


def cutout(key: jax.Array, x: jax.Array, size: int = 16) -> jax.Array:
  """A square of zeros in each image, cut off at its border (DeVries and Taylor 2017).

  Args:
    key: typed key.
    x: `[N, H, W, C]`.
    size: side of the square, whose centre is anywhere in the image; 0 cuts nothing.
  """
  count, height, width, _ = x.shape
  row_key, column_key = keys.named(key, "row", "column")
  half = size // 2

  def inside(key, length):
    centre = jax.random.randint(key, (count, 1), 0, length)
    place = jnp.arange(length)[None]
    return (place >= centre - half) & (place < centre + half)

  rows, columns = inside(row_key, height), inside(column_key, width)
  hole = rows[:, :, None] & columns[:, None]
  return jnp.where(hole[..., None], jnp.zeros((), x.dtype), x)
