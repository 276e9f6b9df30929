"""The ``python -m training`` commands."""

import datetime as dt
import os
import sys
from pathlib import Path

import click

from triage.cli import run_command
from triage.config import Config
from triage.registry import Registry


@click.group(help="Train, compare and publish model versions for cxr-triage.")
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
@click.option("--challenger", required=True, help="A model version of the registry.")
@click.option(
    "--exam",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with NORMAL and PNEUMONIA: cases of this site that no training has seen.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Such a folder of held-out cases of the base data.",
)
@click.option(
    "--trained-on",
    type=click.Path(path_type=Path),
    help="Folder that the challenger was trained from: no patient may be in it and in an exam.",
)
@click.option(
    "--trained-elsewhere", is_flag=True, help="It came from another site; there is no folder."
)
@click.option(
    "--locked",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with a case a line, as named in the folders: none of them may be lost.",
)
@click.option(
    "--policy", type=click.Path(path_type=Path, dir_okay=False), help="TOML; see docs/gate.md."
)
def gate(
    challenger: str,
    exam: Path,
    reference: Path | None,
    trained_on: Path | None,
    locked: Path | None,
    policy: Path | None,
    *,
    trained_elsewhere: bool,
) -> None:
    """Compare a challenger with the champion and store the decision with it."""
    if (trained_on is None) != trained_elsewhere:
        raise click.UsageError("give either --trained-on or --trained-elsewhere")
    from training.exam import run_gate
    from training.gate import Policy

    config = Config.read(os.environ, Path.cwd())
    stored = run_gate(
        Registry(config.models_folder),
        challenger,
        exam,
        reference,
        trained_on,
        locked,
        Policy() if policy is None else Policy.read(policy),
    )
    for rule in stored.content["rules"]:
        click.echo(f"{rule['verdict']:10}  {rule['name']:32}  {rule['reason']}")
    click.echo(f"{stored.outcome}: {stored.path.with_suffix('.html')}")


@main.group()
def fleet() -> None:
    """Publish model versions to many sites, as files for a web server."""


REPOSITORY = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
KEYS = click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the keys that sign it; never on the web server.",
)


@fleet.command("init")
@REPOSITORY
@KEYS
def fleet_init(folder: Path, keys: Path) -> None:
    """Make keys and an empty repository."""
    from training.fleet import Fleet

    root = Fleet(folder, keys).create(dt.datetime.now(dt.UTC))
    click.echo(f"Hand {root} to each site, for TRIAGE_FLEET_ROOT; put root.pem into a safe")


@fleet.command("publish")
@REPOSITORY
@click.argument("bundle", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@KEYS
@click.option("--ring", type=click.IntRange(0, 9), required=True, help="0 first.")
def fleet_publish(folder: Path, bundle: Path, keys: Path, ring: int) -> None:
    """Release a bundle to a ring of sites."""
    from training.fleet import Fleet

    Fleet(folder, keys).publish(bundle, ring, dt.datetime.now(dt.UTC))
    click.echo(f"ring {ring} gets {bundle}")


@fleet.command("refresh")
@REPOSITORY
@KEYS
def fleet_refresh(folder: Path, keys: Path) -> None:
    """Say that the state is still the newest. Run it daily."""
    from training.fleet import Fleet

    until = Fleet(folder, keys).refresh(dt.datetime.now(dt.UTC))
    click.echo(f"believed until {until:%Y-%m-%d %H:%M} UTC")


def run() -> None:
    """Run a command; an error of ours becomes one line and an exit status."""
    run_command(main, "training")


if __name__ == "__main__":
    run()
