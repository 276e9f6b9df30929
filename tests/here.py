"""``python -m training`` in the test's own process, for what it refuses.

A process of its own is busy for five seconds until it has imported TensorFlow. Those that train,
and one refusal of each file, are real processes.
"""

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from training.__main__ import run


def training_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The exit status, and what was printed."""
    line = ["training", *map(str, arguments)]
    said, complained = io.StringIO(), io.StringIO()
    status: object = 0
    with redirect_stdout(said), redirect_stderr(complained), patch("sys.argv", line):
        try:
            run()
        except SystemExit as ended:
            status = ended.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(line, status, said.getvalue(), complained.getvalue())
