"""One file per paper-or-task combination; `run.py` finds them by name."""
