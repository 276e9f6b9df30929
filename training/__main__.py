"""The ``python -m training`` commands."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from triage.cli import run_command

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@click.group(help="Train model versions for cxr-triage.")
def main() -> None:
    """Group of commands."""


@main.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with train/NORMAL and train/PNEUMONIA.",
)
@click.option("--architecture", required=True, help="Name of the network, such as final_model.")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="Of split and weights.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder that becomes the model version; run again to resume.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["float32", "mixed_bfloat16"]),
    default="float32",
    show_default=True,
    help="Arithmetic while training; figures and export are always float32.",
)
@click.option(
    "--about",
    "about_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file that states source, licence and population of the data.",
)
def fit(
    data: Path,
    architecture: str,
    seed: int,
    out: Path,
    epochs: int,
    precision: str,
    about_file: Path | None,
) -> None:
    """Train one network and write a model version."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from training.dataset import read_folder

    snapshot = read_folder(data)
    click.echo(f"{len(snapshot.cases)} pictures, snapshot {snapshot.digest[:19]}")
    # TensorFlow takes seconds to import: only after the data were found good.
    from training import about, fit

    described = about.about(snapshot, about_file)
    run = fit.new_run(snapshot, architecture, seed, precision)  # type: ignore[arg-type]
    terminal = sys.stdout.isatty()
    with click.progressbar(length=len(snapshot.cases), label="Reading pictures") as bar:
        description = fit.fit(
            snapshot,
            described,
            run,
            out,
            epochs,
            lambda done: bar.update(done - bar.pos),
            1 if terminal else 2,
        )
    click.echo(f"{description['version']} is in {out}; threshold {description['threshold']:.4f}")
    for name, figure in description["metrics"]["held_out"].items():
        click.echo(
            f"  {name:12} {figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
        )


@main.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with train/NORMAL and train/PNEUMONIA.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for novelty.npz and quality.npz.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of a model version trained on the data: --out becomes a version of its own "
    "with the same network.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def novelty(data: Path, out: Path, model: Path | None, seed: int) -> None:
    """Fit what tells pictures that are not like the training data, and bad ones."""
    from training.dataset import read_folder
    from training.versions import with_pictures, write_pictures

    snapshot = read_folder(data)
    with click.progressbar(length=len(snapshot.cases), label="Reading pictures") as bar:
        arrays = snapshot.arrays(lambda done: bar.update(done - bar.pos))[..., 0]
    click.echo("Fitting; a minute for 5,000 pictures")
    if model is None:
        write_pictures(snapshot, arrays, out, seed)
        click.echo(f"novelty.npz and quality.npz are in {out}")
    else:
        description = with_pictures(snapshot, arrays, model, out)
        click.echo(f"{description['version']} is in {out}")
        for code, count in description["pictures"]["said_of_held_out"].items():
            click.echo(f"  {code:18} {count} of {description['pictures']['held_out']} held out")


@main.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with train/NORMAL and train/PNEUMONIA.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the study, for report.html and the models; run again to resume.",
)
@click.option("--quick", is_flag=True, help="A few pictures and two epochs, to see the report.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="The most that a model is trained.  [default: 100; with --quick, 2]",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "mixed_bfloat16"]),
    default="float32",
    show_default=True,
    help="Arithmetic while training; figures are always float32.",
)
@click.option(
    "--about",
    "about_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file that states source, licence and population of the data.",
)
def study(
    data: Path,
    out: Path,
    quick: bool,
    seed: int,
    epochs: int | None,
    precision: str,
    about_file: Path | None,
) -> None:
    """Train the notebook's models side by side and write a report of them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Eight networks in one process are eight traces, which it would warn of.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from training.dataset import read_folder

    snapshot = read_folder(data)
    from training import about, study

    if quick:
        snapshot = study.sample(snapshot)
    click.echo(f"{len(snapshot.cases)} pictures, snapshot {snapshot.digest[:19]}")
    bound = epochs or (study.QUICK_EPOCHS if quick else study.EPOCHS)

    def read() -> "npt.NDArray[np.float16]":
        with click.progressbar(length=len(snapshot.cases), label="Reading pictures") as bar:
            return snapshot.arrays(lambda done: bar.update(done - bar.pos))

    report = study.run(
        snapshot,
        about.about(snapshot, about_file),
        study.new_study(snapshot, seed, precision, bound),  # type: ignore[arg-type]
        out,
        click.echo,
        read,
        1 if sys.stdout.isatty() else 2,
    )
    click.echo(f"The report is {report}. It shows radiographs: keep it where they may be kept.")


def run() -> None:
    """Run a command; an error of ours becomes one line and an exit status."""
    run_command(main, "training")


if __name__ == "__main__":
    run()
