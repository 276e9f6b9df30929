"""The ``triage-retrain`` job, which comes with the learning loop."""

import sys

import click


def run() -> None:
    """Entry point of ``triage-retrain``."""
    click.echo("triage-retrain: comes with the learning loop and does nothing yet", err=True)
    sys.exit(1)
