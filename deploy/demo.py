"""The main job on the embedded defaults: sends sample_dicom/ and prints the worklist."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import click

from triage.app import configure_logging, worklist
from triage.cli import run_command
from triage.config import Config
from triage.errors import DicomError, ServiceError
from triage.send import Destination, echo
from triage.worklist import State

SAMPLES = Path(__file__).parent.parent / "sample_dicom"
START_SECONDS = 60
SCORE_SECONDS = 120


@click.command(help=__doc__)
@click.option("--once", is_flag=True, help="Stop after the table.")
def demo(*, once: bool) -> None:
    """Start the service, send the samples, print the table, serve on."""
    config = Config.read(os.environ, Path.cwd())
    configure_logging(config)
    _require_free_port(config)
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = config.home / "serve.log"
    triage = [sys.executable, "-m", "triage"]
    with log.open("ab") as errors:
        service = subprocess.Popen([*triage, "serve"], stderr=errors)
    try:
        click.echo(f"Starting `triage serve` (its log: {log})")
        _wait_for_echo(config, service, log)
        click.echo(f"Sending {SAMPLES.name}/ to it by C-STORE")
        subprocess.run([*triage, "send", str(SAMPLES)], check=True)
        _wait_for_scores(config)
        subprocess.run([*triage, "worklist"], check=True)
        _tell(config)
        if not once:
            click.echo("\nServing until Ctrl-C.")
            service.wait()
    except KeyboardInterrupt:
        click.echo("\nStopping.")
    finally:
        service.terminate()
        service.wait()


def _require_free_port(config: Config) -> None:
    """Else the samples would go to whoever listens there."""
    with socket.socket() as probe:
        if probe.connect_ex((config.dicom_host, config.dicom_port)) == 0:
            raise ServiceError(
                f"port {config.dicom_port} on {config.dicom_host} is taken: stop the program that "
                "has it, or set TRIAGE_DICOM_PORT to a free one"
            )


def _wait_for_echo(config: Config, service: "subprocess.Popen[bytes]", log: Path) -> None:
    destination = Destination(config.dicom_host, config.dicom_port, config.ae_title)
    for _ in range(START_SECONDS * 5):
        if service.poll() is not None:
            line = log.read_text("utf-8").strip().splitlines()[-1:]
            raise ServiceError(f"`triage serve` ended: {' '.join(line)}")
        try:
            echo(destination, timeout=2.0)
        except DicomError:
            time.sleep(0.2)
        else:
            return
    raise ServiceError(f"no C-ECHO within {START_SECONDS} s: see {log}")


def _wait_for_scores(config: Config) -> None:
    with_database = worklist(config)
    try:
        for _ in range(SCORE_SECONDS * 5):
            if not with_database.counts()[State.RECEIVED]:
                return
            time.sleep(0.2)
    finally:
        with_database.close()
    raise ServiceError(f"not all were scored within {SCORE_SECONDS} s: see `triage worklist`")


def _tell(config: Config) -> None:
    here = Path(sys.executable).parent
    program = os.path.relpath(here / "triage")
    click.echo(
        f"""
Where everything is
  home            {config.home}   (TRIAGE_HOME)
  worklist        {config.home / "worklist.sqlite"}   (SQL view worklist_v1)
  instance files  {config.spool_folder}
  model versions  {config.models_folder}
  log             {config.home / "serve.log"}
  DICOM           {config.ae_title} at {config.dicom_host} port {config.dicom_port}

Try
  {program} worklist --json
  {program} show UID
  {program} read UID --verdict confirmed --reader NAME
  {program} check"""
    )


if __name__ == "__main__":
    run_command(demo, "demo")
