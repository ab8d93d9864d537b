"""The report of a run as a page that follows it, on this machine alone.

Serves one page on 127.0.0.1, made of the run's files when it is asked for; it comes
anew when they change. Nothing in the run's folder is touched.

Command: python run.py --experiment=serve_report --config.workdir=runs/mlpnas_digits
Result: a line with the address; it ends with Ctrl-C.
"""

import dataclasses
import pathlib
import threading

from nasjax.core import interrupts
from nasjax.core.config import field
from nasjax.core.types import InputError
from nasjax.results import server
from nasjax.runtime import Run


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of `serve_report`."""

  workdir: str | None = field(None, "the folder of the run")
  port: int = field(8000, "where it listens; 0 for any that is free")
  refresh_seconds: float = field(3.0, "how often the page asks for news")

  def smoke(self) -> "Config":
    """The same: it serves until it is ended."""
    return self


def run(config: Config, run: Run) -> None:
  """Runs the experiment; it does not begin the run, whose directory stays untouched."""
  del run
  if not config.workdir:
    raise InputError("which run? --config.workdir=runs/NAME")
  folder = pathlib.Path(config.workdir)
  if not (folder / "config.json").is_file():
    raise InputError(f"{folder} holds no run: there is no config.json in it")
  if config.refresh_seconds <= 0:
    raise InputError(
      f"config.refresh_seconds must be positive, got {config.refresh_seconds}"
    )
  page = server.Page(folder, config.refresh_seconds)
  with server.serve(page, config.port) as served:
    threading.Thread(target=served.serve_forever, daemon=True).start()
    address = f"http://{server.ADDRESS}:{served.server_port}/"
    print(f"{folder}: {address} (Ctrl-C ends it)", flush=True)
    try:
      while True:
        threading.Event().wait(0.5)
        interrupts.check()
    except KeyboardInterrupt:
      print("ended")
    finally:
      served.shutdown()
