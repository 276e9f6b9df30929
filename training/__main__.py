"""The ``python -m training`` commands."""

import datetime as dt
import logging
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from triage.cli import run_command
from triage.config import Config
from triage.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from training.dataset import Snapshot
    from training.fit import About


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
@click.option(
    "--crossvalidated",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of a finished crossvalidate of the same data, architecture and seed: train on "
    "all patients as it did, and take calibration, threshold and figures from it.",
)
@click.option(
    "--fold",
    type=click.IntRange(min=1),
    help="With --crossvalidated: take the network of this fold instead of training another.",
)
def fit(
    data: Path,
    architecture: str,
    seed: int,
    out: Path,
    epochs: int,
    precision: str,
    about_file: Path | None,
    crossvalidated: Path | None,
    fold: int | None,
) -> None:
    """Train one network and write a model version."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from training.dataset import read_folder

    snapshot = read_folder(data)
    click.echo(f"{len(snapshot.cases)} pictures, snapshot {snapshot.digest[:19]}")
    # TensorFlow takes seconds to import: only after the data were found good.
    from training import about, fit

    described = about.about(snapshot, about_file)
    if crossvalidated is not None:
        _fit_all(snapshot, described, architecture, seed, crossvalidated, out, fold)
        return
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
    _tell(description, out, "held_out")


def _fit_all(
    snapshot: "Snapshot",
    described: "About",
    architecture: str,
    seed: int,
    crossvalidated: Path,
    out: Path,
    fold: int | None,
) -> None:
    from training.champion import fit_all
    from training.folds import plan_of

    plan = plan_of(crossvalidated, architecture, seed, snapshot)
    if fold is not None and fold > plan.folds:
        raise DataError(f"--fold {fold}: the cross-validation has {plan.folds} folds")
    number = None if fold is None else fold - 1
    description = fit_all(
        snapshot, described, plan, crossvalidated, out, lambda: _read(snapshot), 2, number
    )
    _tell(description, out, "out_of_fold")


def _read(snapshot: "Snapshot") -> "npt.NDArray[np.float16]":
    with click.progressbar(length=len(snapshot.cases), label="Reading pictures") as bar:
        return snapshot.arrays(lambda done: bar.update(done - bar.pos))[..., 0]


def _tell(description: Mapping[str, Any], out: Path, part: str) -> None:
    click.echo(f"{description['version']} is in {out}; threshold {description['threshold']:.4f}")
    for name, figure in description["metrics"][part].items():
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
@click.option("--architecture", default="efficientnet_lite0", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), required=True, help="Of folds and weights.")
@click.option("--folds", type=click.IntRange(min=2), default=4, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=16, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["float32", "mixed_bfloat16"]),
    default="mixed_bfloat16",
    show_default=True,
    help="Arithmetic while training; what is judged and exported is always float32.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the cross-validation; run again to resume.",
)
@click.option("--ray", help="A Ray cluster that trains the folds: local, auto, HOST:PORT.")
def crossvalidate(
    data: Path,
    architecture: str,
    seed: int,
    folds: int,
    epochs: int,
    precision: str,
    out: Path,
    ray: str | None,
) -> None:
    """Fine-tune one network a fold and judge each patient by one that never saw them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from training.dataset import read_folder

    snapshot = read_folder(data)
    click.echo(f"{len(snapshot.cases)} pictures, snapshot {snapshot.digest[:19]}")
    from training import champion
    from training import folds as training_folds
    from triage.pixels import fingerprint

    plan = training_folds.Plan(
        architecture, seed, folds, epochs, precision, snapshot.digest, fingerprint()
    )
    training_folds.ready(snapshot, plan, out)
    judged = training_folds.crossvalidate(snapshot, _read(snapshot), plan, out, 2, click.echo, ray)
    _, threshold, told = champion.judge(snapshot, judged, seed)
    _tell({**told, "threshold": threshold, "version": "The cross-validation"}, out, "out_of_fold")


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
    arrays = _read(snapshot)
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
    help="Folder that the version was trained on.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the model version.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File for sites that retrain this version and do not have its data.",
)
@click.option("--pictures", type=click.IntRange(min=2), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
def subsample(data: Path, model: Path, out: Path, pictures: int, seed: int) -> None:
    """Store some of the pictures that a version was trained on, to be rehearsed elsewhere."""
    from training.rehearsal import rehearsal, store
    from triage.registry import ModelVersion

    version = ModelVersion.load(model)
    drawn = rehearsal(data, version, pictures, seed)
    store(drawn, version, out)
    click.echo(
        f"{len(drawn.labels)} pictures that {version.version} was trained on are in {out}, for "
        "TRIAGE_RETRAIN_BASE_DATA. It shows radiographs: keep it where they may be kept."
    )


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
    from triage import app

    config = Config.read(os.environ, Path.cwd())
    stored = run_gate(
        app.registry(config),
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


@main.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder that the version was trained on.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the model version.",
)
@click.option(
    "--crossvalidated",
    type=click.Path(path_type=Path, file_okay=False),
    help="Its cross-validation, if it was trained on every patient.",
)
@click.option("--pictures", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Markdown file to write; else it is printed.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that becomes a version of its own, with the same network, whose card tells "
    "what was found.",
)
@click.option(
    "--seen",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --into: TOML file with the names of the worst failures and, of each, what a person "
    "sees on it.",
)
def stress(
    data: Path,
    model: Path,
    crossvalidated: Path | None,
    pictures: int,
    out: Path | None,
    into: Path | None,
    seen: Path | None,
) -> None:
    """Judge the radiographs as other consoles would send them, and without lungs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from training.dataset import read_folder
    from training.stress import report
    from triage.registry import ModelVersion

    if seen is not None and into is None:
        raise click.UsageError("--seen needs --into")
    words = {} if seen is None else _seen(seen)
    version = ModelVersion.load(model)
    snapshot = read_folder(data)
    from training import champion
    from training.versions import check_findings, with_findings

    if into is not None:
        check_findings(version, words, into)
    arrays = _read(snapshot)
    found = champion.stress(
        snapshot,
        arrays,
        version,
        crossvalidated,
        pictures,
        lambda name: click.echo(name, err=True),
    )
    name = version.version
    if into is not None:
        name = with_findings(model, found.summary(), words, into)["version"]
        click.echo(f"{name} is in {into}", err=True)
    text = report(name, found)
    if out is None:
        click.echo(text)
    else:
        out.write_text(text, "utf-8")
        click.echo(f"{name}: the table is in {out}")


def _seen(file: Path) -> dict[str, str]:
    """What a person sees on pictures, by name."""
    try:
        told = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--seen {file} cannot be read ({error})") from error
    if not all(isinstance(words, str) for words in told.values()):
        raise DataError(f'--seen {file}: each line is "NAME OF A PICTURE" = "WORDS"')
    return told


@main.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the model version.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Markdown file; the reliability plot goes beside it as .svg.",
)
def card(model: Path, out: Path) -> None:
    """Write a version's model card and its reliability plot."""
    from training.calibrate import reliability_plot
    from triage.card import card as card_of
    from triage.registry import ModelVersion

    version = ModelVersion.load(model)
    text = card_of(version)
    told = version.description.get("calibration")
    if told is not None and "reliability" in told:
        plot = out.with_suffix(".svg")
        plot.write_text(reliability_plot(told["reliability"], told["reliability_copies"]), "utf-8")
        text += f"\n![Reliability]({plot.name})\n"
    out.write_text(text, "utf-8")
    click.echo(f"{version.version}: the card is in {out}")


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

    report = study.run(
        snapshot,
        about.about(snapshot, about_file),
        study.new_study(snapshot, seed, precision, bound),  # type: ignore[arg-type]
        out,
        click.echo,
        lambda: _read(snapshot)[..., None],
        1 if sys.stdout.isatty() else 2,
    )
    click.echo(f"The report is {report}. It shows radiographs: keep it where they may be kept.")


def run() -> None:
    """Run a command; an error of ours becomes one line and an exit status."""
    run_command(main, "training")


if __name__ == "__main__":
    run()
