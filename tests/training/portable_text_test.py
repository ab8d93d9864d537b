"""A language model of a cell in `best/`: NumPy, ONNX, StableHLO and nasjax alike."""

import runpy

import jax
import jax.export
import numpy as np
import onnxruntime
import pytest
from alone import alone

from nasjax.data import standalone_text, text
from nasjax.networks import cell_rnn
from nasjax.results import export
from nasjax.spaces.recurrent_cell import RecurrentCell
from nasjax.training import portable_text

pytestmark = pytest.mark.usefixtures("quick_compile")
SPACE = RecurrentCell(4)
# Every activation, a state that two nodes read, and one that none does.
ARCH = (
  "Genotype(recurrent=[('tanh', 0), ('relu', 1), ('sigmoid', 1), ('identity', 2)], "
  "concat=range(1, 5))"
)
SENTENCES = "the cat sat on the mat\nthe dog sat on the cat\n" * 20
HIDDEN = 6


@pytest.fixture(scope="module", params=text.UNITS)
def saved(request, tmp_path_factory):
  """A model that nobody trained, in `best/`, its text, and its own answers."""
  folder = tmp_path_factory.mktemp("text")
  (folder / "text.txt").write_text(SENTENCES)
  read = text.from_files(str(folder / "text.txt"), unit=request.param)
  genotype = SPACE.parse(ARCH)
  plan = cell_rnn.make_plan(len(read.vocabulary), HIDDEN, 4)
  weights = cell_rnn.init(np.uint32(3), plan)
  noise = np.random.default_rng(1)
  for name, value in weights.items():  # large enough to be likely or not
    drawn = noise.uniform(-1, 1, value.shape).astype(np.float32)
    weights[name] = value + drawn
  portable_text.save(
    folder / "best",
    space=SPACE,
    genotype=genotype,
    network=plan._asdict(),
    weights=weights,
    text=read,
    metrics={"test_perplexity": 5.0},
  )
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, plan.vocabulary, (9, 3)).astype(np.int32)
  hidden = rng.normal(size=(3, HIDDEN)).astype(np.float32)
  with jax.default_matmul_precision("highest"):
    output = cell_rnn.derived(weights, SPACE.decode(genotype), tokens, hidden)
  answers = jax.nn.softmax(output.logits), output.hidden
  return folder, read, tokens, hidden, answers


def close(found, wanted):
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_all_forms_answer_alike(saved):
  folder, read, tokens, hidden, answers = saved
  best = folder / "best"
  names = {path.name for path in best.iterdir()}
  assert names == {*export.FILES, *export.PORTABLE_FILES}
  script = runpy.run_path(str(best / "predict.py"))
  model = script["load"](best)
  close(script["predict"](model, tokens, hidden), answers)
  # In two parts, and any number of steps and texts.
  first = script["predict"](model, tokens[:4], hidden)
  second = script["predict"](model, tokens[4:], first[1])
  close([np.concatenate([first[0], second[0]]), second[1]], answers)
  onnx = onnxruntime.InferenceSession(best / "model.onnx")
  close(onnx.run(None, {"tokens": tokens, "hidden": hidden}), answers)
  one = {"tokens": tokens[:1, :1], "hidden": hidden[:1]}
  assert onnx.run(None, one)[0].shape == (1, 1, len(read.vocabulary))
  exported = jax.export.deserialize(bytearray((best / "model.jaxexport").read_bytes()))
  assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
  close(exported.call(tokens, hidden), answers)
  close(exported.call(tokens[:1, :1], hidden[:1])[:1], [answers[0][:1, :1]])


def test_the_script_reads_a_text_alone(saved, tmp_path):
  folder, read, *_ = saved
  best = folder / "best"
  given = tmp_path / "new.txt"
  given.write_text("the cat sat on the zebra\nthe dog\n")
  process = alone(folder, given, tmp_path / "out.csv")
  assert process.returncode == 0, process.stderr
  model = standalone_text.load(best)
  numbers = standalone_text.read(given, model)
  # By hand: one step after the other.
  hidden, spent = np.zeros((1, HIDDEN)), []
  for before, after in zip(numbers, numbers[1:]):
    probabilities, hidden = standalone_text.predict(model, np.array([[before]]), hidden)
    spent.append(probabilities[0, 0, after])
  perplexity = np.exp(-np.log(spent).mean())
  shown = f"perplexity {perplexity:.4f} over {len(numbers) - 1} {read.unit}"
  assert process.stdout.strip() == shown
  lines = (tmp_path / "out.csv").read_text().splitlines()
  assert lines[0] == "token,probability,likeliest"
  if read.unit == "words":
    assert [line.split(",")[0] for line in lines[1:]] == [
      *["cat", "sat", "on", "the", "<unk>", "<eos>", "the", "dog", "<eos>"]
    ]
    values = [float(line.split(",")[1]) for line in lines[1:]]
    np.testing.assert_allclose(values, spent, rtol=1e-8)


def test_the_script_goes_on_with_a_text(saved):
  folder, read, *_ = saved
  given = folder / "text.txt"
  said = []
  for seed in (0, 0, 1):
    process = alone(folder, given, "--continue=40", f"--seed={seed}")
    assert process.returncode == 0, process.stderr
    said.append(process.stdout)
  assert said[0] == said[1] != said[2]
  assert "<" not in said[0]  # neither <unk> nor <eos>
  if read.unit == "characters":
    assert len(said[0]) == 41 and set(said[0]) <= set(SENTENCES)
  else:
    assert set(said[0].split()) <= set(SENTENCES.split())


@pytest.mark.parametrize(
  ("content", "line"),
  [(None, "there is no file"), (b"\xff\xfe\x00", "is not UTF-8"), (b"", "has 0 ")],
)
def test_a_wrong_text_is_one_line(saved, tmp_path, content, line):
  given = tmp_path / "wrong.txt"
  if content is not None:
    given.write_bytes(content)
  process = alone(saved[0], given)
  assert process.returncode == 2 and process.stderr.count("\n") == 1
  assert line in process.stderr and "Traceback" not in process.stderr


def test_other_models_are_refused(saved, tmp_path):
  best = saved[0] / "best"
  told = export.load_best(best)
  with pytest.raises(ValueError, match="no language model"):
    standalone_text.model_of(
      {**told.description, "space": {"kind": "mlp_chain"}}, told.weights, {}
    )
  with pytest.raises(ValueError, match="no model in"):
    standalone_text.load(tmp_path)
