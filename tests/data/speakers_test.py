import numpy as np
import pytest

from nasjax.core.types import InputError
from nasjax.data import speakers

_KEY = np.random.default_rng(0)
_X = _KEY.normal(size=(30, 8, 2))
_GOOD = dict(x=_X, n_frames=np.full(30, 6), speaker=np.arange(30) % 3)


@pytest.fixture
def save(tmp_path):
  def save(**changes):
    arrays = {k: v for k, v in (_GOOD | changes).items() if v is not None}
    np.savez(tmp_path / "speakers.npz", **arrays)
    return tmp_path / "speakers.npz"

  return save


def test_summary_by_hand():
  frames = np.array([[1.0], [3.0], [10.0], [30.0], [99.0]])  # the last is padding
  features = speakers.summarise(frames[None], np.array([4]), segments=2)
  np.testing.assert_allclose(features, [[2, 20, 1, 10, (2 + 7 + 20) / 3]])


def test_padding_does_not_matter(save):
  x = _X.copy()
  x[:, 6:] = 1e6
  a, b = speakers.load(save()), speakers.load(save(x=x))
  np.testing.assert_array_equal(a.train.x, b.train.x)
  assert a.num_features == (2 * 4 + 1) * 2 == len(a.feature_names)
  assert a.feature_names[:3] == ("mean_0[0]", "mean_0[1]", "mean_1[0]")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_recordings_shorter_than_the_spans_are_finite(count):
  features = speakers.summarise(_X, np.full(30, count), segments=4)
  assert features.shape == (30, 18) and np.isfinite(features).all()


def test_the_official_test_split_is_kept(save):
  data = speakers.load(save(is_test=np.arange(30) < 6), segments=1)
  assert len(data.test.y) == 6 and len(data.train.y) + len(data.valid.y) == 24


def test_the_spoken_digits(shared_data):
  data = speakers.load(shared_data / "speakers" / "fsdd_mfcc.npz")
  rows = [len(s.y) for s in (data.train, data.valid, data.test)]
  assert rows == [2160, 540, 300]
  assert (data.num_features, data.num_classes) == (117, 6)
  # The speakers are apart: even nearest class means tell most of them.
  means = np.stack([data.train.x[data.train.y == k].mean(0) for k in range(6)])
  guess = ((data.test.x[:, None] - means[None]) ** 2).sum(-1).argmin(1)
  assert (guess == data.test.y).mean() > 0.8


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(speaker=None, n_frames=None), "lacks the arrays n_frames, speaker"),
    (dict(x=_X[0]), "x must be .recordings, frames, coefficients."),
    (dict(speaker=np.arange(29) % 3), "one speaker each"),
    (dict(n_frames=np.full(30, 9)), "n_frames must be between 1 and 8"),
    (dict(n_frames=np.full(30, 6.0)), "n_frames whole numbers"),
    (
      dict(x=np.where(np.isin(_X, _X[4, 1, 1]), np.nan, _X)),
      "not finite in recording 5",
    ),
    (dict(is_test=np.ones(4)), "speakers.npz: the test mask has shape"),
    (dict(speaker=np.zeros(30, int)), "speakers.npz: the target has one class only"),
    (dict(speaker=np.array(["a", " "])[np.arange(30) % 2]), "npz: .* 15 missing"),
  ],
)
def test_files_that_are_not_the_task(save, changes, message):
  with pytest.raises(InputError, match=message):
    speakers.load(save(**changes))


def test_options_that_cannot_be(save, tmp_path):
  with pytest.raises(InputError, match="--config.data.path"):
    speakers.load(None)
  with pytest.raises(InputError, match="segments must be positive, got 0"):
    speakers.load(save(), segments=0)
  with pytest.raises(InputError, match="^test_fraction must be between"):
    speakers.load(save(), test_fraction=1.0)
  (tmp_path / "other.csv").write_text("a,b\n")
  with pytest.raises(InputError, match="not an npz archive"):
    speakers.load(tmp_path / "other.csv")
