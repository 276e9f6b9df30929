"""A thousand radiographs through two workers while the champion changes, as told in docs/models.md.

    python -m tests.benchmarks.promotion [EXAMS]

Promotes and rolls back by the commands, four moves in all, and verifies that each exam has
exactly one score, of one version with that version's threshold.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import click

from tests.conftest import Service, free_port, wait_for
from tests.integration.test_promotion import command, copies, scores
from tests.versions import THRESHOLD, another
from triage.registry import Registry
from triage.send import send


@click.command()
@click.argument("exams", type=int, default=1000)
def main(exams: int) -> None:
    """Print what was found."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "exams").mkdir()
        files = copies(exams, Path(folder) / "exams")
        service = Service(Path(folder) / "home", free_port())
        service.start()
        second = subprocess.Popen(
            [sys.executable, "-m", "triage", "serve", "--roles", "score"],
            env=service.environment, cwd=folder, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        registry = Registry(service.home / "models")
        first = registry.champion()
        made = registry.add(another(Path(folder) / "another").folder)
        thresholds = {first.version: first.threshold, made.version: THRESHOLD}
        began = time.perf_counter()
        thread = threading.Thread(target=lambda: list(send(files, service.destination)))
        thread.start()
        waits = []
        for move in range(4):
            wait_for(lambda at=(move + 1) * exams // 6: len(scores(service)) >= at, 3600)
            if move % 2:
                command(service, "rollback")
            else:
                command(service, "approve", made.version, "--force", "--why", "benchmark")
                command(service, "promote", made.version)
            version = registry.champion().version
            since, before = time.perf_counter(), Counter(v for _, v, _ in scores(service))[version]

            def used(version: str = version, before: int = before) -> bool:
                return Counter(v for _, v, _ in scores(service))[version] > before

            wait_for(used, 60)
            waits.append(time.perf_counter() - since)
        thread.join()
        wait_for(lambda: len(scores(service)) >= exams, 3600)
        seconds = time.perf_counter() - began
        second.terminate()
        second.wait(60)
        service.stop()
        found = scores(service)
        each = Counter(Counter(uid for uid, _, _ in found).values())
        mixed = sum(threshold != thresholds[version] for _, version, threshold in found)
        click.echo(
            f"{len(found)} scores of {exams} exams in {seconds:.0f} s; scores an exam: {each}"
        )
        click.echo(f"by version: {dict(Counter(v for _, v, _ in found))}; mixed: {mixed}")
        click.echo("first score after the command: " + ", ".join(f"{w:.2f} s" for w in waits))


if __name__ == "__main__":
    main()
