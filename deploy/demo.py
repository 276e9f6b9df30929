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
    _require_free_ports(config)
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = config.home / "serve.log"
    triage = [sys.executable, "-m", "triage"]
    began = log.stat().st_size if log.exists() else 0
    with log.open("ab") as errors:
        service = subprocess.Popen([*triage, "serve"], stderr=errors)
    try:
        click.echo(f"Starting `triage serve` (its log: {log})")
        _wait_for_echo(config, service, log)
        click.echo(f"Sending {SAMPLES.name}/ to it by C-STORE")
        subprocess.run([*triage, "send", str(SAMPLES)], check=True)
        _wait_for_scores(config)
        subprocess.run([*triage, "worklist"], check=True)
        _tell(config, _how_to_sign_in(log, began))
        if not once:
            click.echo("\nServing until Ctrl-C.")
            service.wait()
    except KeyboardInterrupt:
        click.echo("\nStopping.")
    finally:
        service.terminate()
        service.wait()


def _require_free_ports(config: Config) -> None:
    """Else the samples would go to whoever listens there, or the page would not be ours."""
    places = {
        "TRIAGE_DICOM_PORT": (config.dicom_host, config.dicom_port),
        "TRIAGE_WEB_PORT": (config.web_host, config.web_port),
    }
    for setting, (host, port) in places.items():
        with socket.socket() as probe:
            if port and probe.connect_ex((host, port)) == 0:
                raise ServiceError(
                    f"port {port} on {host} is taken: stop the program that has it, or set "
                    f"{setting} to a free one"
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


def _how_to_sign_in(log: Path, began: int) -> str:
    """The line that the first start has written, once the page is served."""
    told = ""
    for _ in range(START_SECONDS * 5):
        with log.open("rb") as file:
            file.seek(began)
            told = file.read().decode("utf-8", "replace")
        if "web_listening" in told:
            break
        time.sleep(0.2)
    for line in told.splitlines():
        if line.startswith("triage: first start: "):
            return line.removeprefix("triage: first start: ")
    return "sign in with an account of `triage users list`; `triage users reset NAME` helps"


def _tell(config: Config, sign_in: str) -> None:
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
  page            {config.web_origin}/
                  {sign_in}

Try
  {program} worklist --json
  {program} show UID
  {program} read UID --verdict confirmed --reader NAME
  {program} check"""
    )


if __name__ == "__main__":
    run_command(demo, "demo")
