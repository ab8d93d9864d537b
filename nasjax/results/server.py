"""A run's report over HTTP while the run goes on, for this machine alone.

The page is made of the run's files when somebody asks for it, and asks itself every
few seconds whether they have changed. Nothing is written, and nothing else is served.
"""

import hashlib
import http.server
import pathlib
import threading
from collections.abc import Iterator

from nasjax.core.types import InputError
from nasjax.results import records, report

ADDRESS = "127.0.0.1"
_FILES = ("config.json", "summary.json", "log.txt", "report.html", "metrics.jsonl")
_RECORDS = ("records.jsonl", "control_records.jsonl")
_LOG_LINES = 20
# Nothing from elsewhere is loaded, and nothing is told to anybody.
_POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
  "img-src data:; connect-src 'self'"
)
_NOTHING = "<!doctype html><title>nasjax</title><body>cannot be read yet</body>"
_SCRIPT = """<script>
setInterval(async () => {
  try {
    const now = await (await fetch("version")).text();
    if (now !== "%s") location.reload();
  } catch {}
}, %d);
</script>
</body>"""


class Page:
  """The live page of one run.

  Args:
    folder: the run's.
    refresh_seconds: how often the page asks for news.
  """

  def __init__(self, folder: pathlib.Path, refresh_seconds: float):
    self._folder, self._refresh = folder, refresh_seconds
    self._lock = threading.Lock()
    self._made = ("", _NOTHING)

  def version(self) -> str:
    """A text that changes when a file of the run does."""
    said = hashlib.sha256()
    for name in (*_FILES, *_RECORDS):
      try:
        found = (self._folder / name).stat()
        said.update(f"{name} {found.st_mtime_ns} {found.st_size} ".encode())
      except OSError:
        continue
    return said.hexdigest()[:16]

  def html(self) -> str:
    """The page as the files are now; the one before where they cannot be read."""
    with self._lock:
      version = self.version()
      if self._made[0] != version:
        try:
          text = self._render()
        except InputError:  # a file is being written
          version, text = "", self._made[1]
        self._made = version, text
      script = _SCRIPT % (version, 1000 * self._refresh)
      return self._made[1].replace("</body>", script)

  def _render(self) -> str:
    finished = self._folder / "report.html"
    summary = records.read_json(self._folder / "summary.json")
    if summary.get("status") == "finished" and finished.exists():
      return finished.read_text(encoding="utf-8")
    log = self._folder / "log.txt"
    lines = list(_tail(log)) if log.exists() else ["nothing is written yet"]
    return report.live(self._folder, lines)


def _tail(path: pathlib.Path) -> Iterator[str]:
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  yield from lines[-_LOG_LINES:]


def serve(page: Page, port: int) -> http.server.ThreadingHTTPServer:
  """A server of that page, not yet started (`serve_forever`).

  Args:
    page: of the run.
    port: where it listens, on 127.0.0.1; 0 for any that is free.

  Raises:
    InputError: the port is taken, or none.
  """

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 (the library's name)
      host = self.headers.get("Host", "").rpartition(":")[0]
      if host not in (ADDRESS, "localhost"):
        self.send_error(403)  # a page elsewhere that has our address under its name
      elif self.path == "/":
        self._answer(page.html(), "text/html")
      elif self.path == "/version":
        self._answer(page.version(), "text/plain")
      else:
        self.send_error(404)

    def _answer(self, text: str, kind: str) -> None:
      body = text.encode()
      self.send_response(200)
      self.send_header("Content-Type", f"{kind}; charset=utf-8")
      self.send_header("Content-Length", str(len(body)))
      self.send_header("Cache-Control", "no-store")
      self.send_header("Content-Security-Policy", _POLICY)
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, format, *args):
      del format, args

  try:
    return http.server.ThreadingHTTPServer((ADDRESS, port), Handler)
  except (OSError, OverflowError) as error:
    raise InputError(f"cannot listen on {ADDRESS}:{port}: {error}") from None
