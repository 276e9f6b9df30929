"""``python -m triage`` is ``triage``."""

from triage.cli import run

if __name__ == "__main__":
    run()
