"""The live page: what it shows, when it is news, and whom it answers."""

import http.client
import threading

import pytest
from synthetic_run import SCRIPT, make_records, make_run, make_summary

from nasjax.core.types import InputError
from nasjax.results import report, server


@pytest.fixture
def folder(tmp_path):
  made = tmp_path / "run"
  make_run(made, summary={}, search=make_records(0, improving=True)[:12], control=[])
  (made / "summary.json").unlink(missing_ok=True)
  (made / "log.txt").write_text(f"10:00:00 first\n10:00:01 {SCRIPT}\n")
  return made


@pytest.fixture
def ask(folder):
  """`ask(path, host)` -> status and text, of a server on a port that was free."""
  with server.serve(server.Page(folder, 0.5), 0) as served:
    threading.Thread(target=served.serve_forever, daemon=True).start()

    def get(path="/", host=None):
      connection = http.client.HTTPConnection(server.ADDRESS, served.server_port)
      named = {} if host is None else {"Host": host}
      connection.request("GET", path, headers=named)
      answer = connection.getresponse()
      return answer.status, answer.read().decode()

    get.address = served.server_address[0]
    get.port = served.server_port
    yield get
    served.shutdown()


def test_the_page_is_the_run_so_far(ask, folder):
  status, page = ask()
  assert status == 200
  for words in ("So far 12", "10:00:00 first", "<svg", 'fetch("version")', "500"):
    assert words in page
  assert SCRIPT not in page and "&lt;script&gt;alert(1)" in page
  assert page.count("<script>") == 1
  assert not (folder / "report.html").exists()  # nothing is written


def test_news_change_the_version(ask, folder):
  _, before = ask("/version")
  assert ask("/version")[1] == before and before in ask()[1]
  with open(folder / "log.txt", "a") as file:
    file.write("10:00:02 more\n")
  assert ask("/version")[1] != before
  assert "10:00:02 more" in ask()[1]


def test_a_finished_run_is_its_report(ask, folder):
  make_run(folder, summary=make_summary())
  report.write(folder)
  _, page = ask()
  script = page.index("<script>")
  assert page[:script] == (folder / "report.html").read_text()[:script]


def test_what_cannot_be_read_at_first_is_asked_for_again(folder, ask):
  (folder / "config.json").write_text("{")
  status, page = ask()
  assert status == 200 and "cannot be read yet" in page and "fetch(" in page


def test_what_cannot_be_read_leaves_the_page_before(ask, folder):
  _, before = ask()
  (folder / "summary.json").write_text('{"status": ')
  _, after = ask()
  assert (
    "So far 12" in after and after.split("<script>")[0] == before.split("<script>")[0]
  )


def test_it_answers_this_machine_alone_and_nothing_else(ask):
  assert ask.address == "127.0.0.1"
  assert ask(host=f"elsewhere.example:{ask.port}")[0] == 403
  assert ask(host=f"localhost:{ask.port}")[0] == 200
  for path in ("/config.json", "/../run/config.json", "/best/weights.npz"):
    assert ask(path)[0] == 404


def test_a_port_that_is_taken_is_told(ask, folder):
  with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{ask.port}"):
    server.serve(server.Page(folder, 1.0), ask.port)
  with pytest.raises(InputError, match="cannot listen"):
    server.serve(server.Page(folder, 1.0), 70000)
