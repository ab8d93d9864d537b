"""Random crops, mirrors and holes."""

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.data import augment


def test_crops_are_shifts_and_half_are_mirrored():
  image = np.arange(1, 21, dtype=np.float32).reshape(4, 5, 1)
  x = jnp.asarray(np.broadcast_to(image, (200, 4, 5, 1)))
  made = np.asarray(
    jax.jit(augment.crop_and_flip, static_argnums=2)(jax.random.key(0), x, 1)
  )
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
  shifts = [padded[i : i + 4, j : j + 5] for i in range(3) for j in range(3)]
  legal = {s.tobytes() for s in shifts} | {s[:, ::-1].tobytes() for s in shifts}
  found = {part.tobytes() for part in made}
  assert found == legal  # all 18 of them, 200 draws
  still = np.asarray(augment.crop_and_flip(jax.random.key(1), x, 0))
  plain = (still == x).all((1, 2, 3))
  assert ((still == x[:, :, ::-1]).all((1, 2, 3)) | plain).all()
  assert 60 < plain.sum() < 140


def test_holes_are_squares_cut_off_at_the_border():
  x = jnp.ones((300, 6, 7, 2))
  made = np.asarray(augment.cutout(jax.random.key(0), x, 4))
  hole = made == 0
  assert (hole[..., 0] == hole[..., 1]).all()
  rows, columns = hole[..., 0].any(2).sum(1), hole[..., 0].any(1).sum(1)
  np.testing.assert_array_equal(hole[..., 0].sum((1, 2)), rows * columns)
  assert rows.max() == columns.max() == 4 and rows.min() == columns.min() == 2
  np.testing.assert_array_equal(augment.cutout(jax.random.key(0), x, 0), x)
