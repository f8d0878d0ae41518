"""The `rrg` command. Heavy modules are imported by the command that needs them, so that `rrg --help` is immediate."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rrg_utils.errors import RRGError

app = typer.Typer(
    help="Radiology report generation: run the course, one figure, or prepare its parts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="The default data: real reports with rendered radiographs.", no_args_is_help=True)
app.add_typer(data, name="data")

Profile = Annotated[str, typer.Option(help="Sizes to run at, from notebooks/profiles.yml.")]


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1 (RRG_DEBUG=1 shows where it arose)."""
    debug = os.environ.get("RRG_DEBUG", "") not in ("", "0")
    try:
        app()
    except RRGError as error:
        if debug:
            raise
        sys.exit(f"rrg: {error}")
    except Exception as error:
        if debug:
            raise
        reason = (str(error).strip() or "no message").splitlines()[0]
        sys.exit(f"rrg: unexpected {type(error).__name__}: {reason} (RRG_DEBUG=1 shows where)")


@app.command("run")
def run_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NOTEBOOK]...", help='"03", "narrative_bias" or the whole name.')
    ] = None,
    profile: Profile = "cpu",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Override one parameter.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the executed notebooks [runs/PROFILE].")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is up to date.")] = False,
    commit: Annotated[
        bool, typer.Option("--commit", help="Developers: also refresh the outputs committed under notebooks/.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Training seeds to run each over, instead of one.")] = None,
    claims: Annotated[bool, typer.Option("--claims", help="With --seeds: only notebooks that test a claim.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would run, what it needs and costs.")] = False,
) -> None:
    """Run notebooks in order, all of them by default; go on where an interrupted run stopped."""
    from rrg_utils import runner

    if dry:
        if seeds or commit or claims:
            raise RRGError("--dry-run goes with notebooks, --profile, -p and --output alone")
        from rrg_utils.dryrun import dry_run

        for line in dry_run(names or (), profile, parameter or (), output):
            typer.echo(line)
        return
    if claims and not seeds:
        raise RRGError("--claims goes with --seeds N: how many training seeds?")
    if seeds:
        if parameter or commit:
            raise RRGError("--seeds goes without -p and --commit: it sets the seeds and leaves notebooks/ alone")
        made = runner.run_seeds(names or (), profile, seeds, claims, output, fresh)
        plural = "s" * (len(made) != 1)
        where = runner.show(made[0].parent)
        typer.echo(f"Made {len(made)} run{plural} in {where}; rrg scorecard shows the verdicts")
        return
    made = runner.run(names or (), profile, parameter or (), output, fresh, commit)
    typer.echo(f"Made {len(made)} notebook{'s' * (len(made) != 1)} in {runner.show(made[0].parent)}")


@app.command("figure")
def figure_command(
    name: Annotated[str | None, typer.Argument(metavar="[ID]", help="For example llava_ta.fig1.")] = None,
    profile: Profile = "cpu",
    listing: Annotated[bool, typer.Option("--list", help="List the figures and what each costs.")] = False,
) -> None:
    """Re-run one figure or table of a paper and save it: PNG, SVG and its data as CSV, or CSV and Markdown."""
    from rrg_utils import runner

    if listing:
        for kind, known in (("figure", runner.figures()), ("table", runner.tables())):
            for identifier, path in known.items():
                typer.echo(f"{identifier:36} {kind:7} {path.stem:28} {runner.needs(path)}".rstrip())
    elif name is None:
        raise RRGError("name a figure; rrg figure --list shows them")
    else:
        for path in runner.figure(name, profile):
            typer.echo(runner.show(path))


@app.command("scorecard")
def scorecard_command(
    profile: Profile = "cpu",
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a README.")] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Developers: renew scorecard and pictures of a README.")
    ] = None,
    rerun: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Measurements of a run to compare with, such as runs/cpu/results."),
    ] = None,
) -> None:
    """Print every claim of the papers beside what was measured here, and the verdict."""
    from rrg_utils import readme, runner, scorecard

    if profile not in runner.profiles():
        raise runner.unknown("profile", profile, list(runner.profiles()))
    if rerun and write:
        raise RRGError("--write renews what is committed: it goes without --rerun")
    if rerun and not any(rerun.glob(f"*/{profile}-seed*.json")):
        raise RRGError(f"{rerun} holds no measurements at profile {profile}: name the results folder of a run")

    if write:
        typer.echo("\n".join(readme.renew(write, profile)))
    else:
        typer.echo(scorecard.markdown(profile, rerun) if markdown else scorecard.text(profile, rerun))


@app.command()
def doctor() -> None:
    """Check what this machine has; exit code 1 if something needed is missing."""
    from rrg_utils.artifacts import cache_dir
    from rrg_utils.doctor import checks, table

    found = checks()
    typer.echo(table(found))
    typer.echo(f"Cache folder: {cache_dir()}")
    if any(check.state == "missing" for check in found):
        raise RRGError("something needed is missing: see the lines marked `missing`")


@app.command("pretrain")
def pretrain_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    studies: Annotated[int | None, typer.Option(min=1, help="Rendered studies to train on.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over them.")] = None,
    size: Annotated[
        int | None, typer.Option(min=16, metavar="PX", help="Height and width of the films in pixels.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first weights and the order.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
) -> None:
    """Pre-train an encoder on rendered studies and write its weights and card under weights/."""
    from rrg_utils.runner import unknown
    from rrg_utils.vision.pretrain import PRETRAINABLE, pretrain

    if name is None:
        for known, description in PRETRAINABLE.items():
            typer.echo(f"{known:16} {description}")
        return
    if name not in PRETRAINABLE:
        raise unknown("encoder", name, list(PRETRAINABLE))
    _show_progress()
    options = {"studies": studies, "epochs": epochs, "size": size, "seed": seed, "lr": lr}
    typer.echo(pretrain(name, **{option: value for option, value in options.items() if value is not None}))


@app.command("compare")
def compare_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Encoders; all by default.")] = None,
    studies: Annotated[int, typer.Option(min=1, help="Rendered studies to train on.")] = 8000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each encoder.")] = 3,
) -> None:
    """Train encoders alike, several seeds each, for notebook 04; what is there already is not made again.

    Each gets the best of three learning rates. Started twice, the two share the encoders. Five seeds took
    three and a half hours of one busy core, without the search for rates.
    """
    from rrg_utils.runner import show, unknown
    from rrg_utils.vision.comparison import compare_all
    from rrg_utils.vision.pretrain import PRETRAINABLE

    for name in names or ():
        if name not in PRETRAINABLE:
            raise unknown("encoder", name, list(PRETRAINABLE))
    _show_progress()
    for path in compare_all(names or list(PRETRAINABLE), seeds, studies=studies, epochs=epochs):
        typer.echo(show(path))


@app.command("train")
def train_command(
    system: Annotated[str | None, typer.Argument(metavar="[SYSTEM]", help="One of those listed without it.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="FIELD=VALUE", help="Of the configuration; may be repeated."),
    ] = None,
) -> None:
    """Train a system into the cache. Several GPUs: accelerate launch -m rrg_utils.cli train ..., see docs/scale.md."""
    from rrg_utils import processes, train

    if system is None:
        for name in train.CONFIGS:
            typer.echo(f"{name:10} {train.described(name)}")
        return
    if processes.is_main_process():
        _show_progress()
    made = train.train(system, parameter or ())
    if processes.is_main_process():
        typer.echo(train.summary(made))
    processes.leave()


@app.command("extract")
def extract_command(
    source: Annotated[str, typer.Option(help="iu_xray or mimic_cxr.")],
    root: Annotated[Path, typer.Option(help="The folder of real images.")],
    output: Annotated[Path, typer.Option(help="Folder for the features; the same one to go on after a stop.")],
    encoder: Annotated[str, typer.Option(help="One of weights/, or timm:NAME or xrv:NAME, also with @FILE.")] = "swin",
    size: Annotated[int, typer.Option(help="Height and width of its films in pixels.")] = 128,
    shard: Annotated[int, typer.Option(min=1, help="Images in one file.")] = 1024,
) -> None:
    """Run an encoder over every real image of a source. Several GPUs: accelerate launch -m rrg_utils.cli extract ..."""
    from rrg_utils.runner import unknown

    if source not in ("iu_xray", "mimic_cxr"):
        raise unknown("source of real images", source, ["iu_xray", "mimic_cxr"])
    from rrg_utils import processes
    from rrg_utils.data.radiographs import image_files
    from rrg_utils.vision.extract import Tokens, extract
    from rrg_utils.vision.features import weights_hash
    from rrg_utils.vision.pretrain import load_encoder

    signature = f"{encoder.partition('@')[0]}-{size} {weights_hash(encoder, size)}"  # wherever the weights lie
    extract(image_files(source, root), load_encoder(encoder, size), output, size=size, signature=signature, shard=shard)
    if processes.is_main_process():
        tokens = Tokens(output)
        typer.echo(f"{len(tokens):,} images, {tokens.shape[1]} tokens of width {tokens.shape[2]} each, in {output}")
        if tokens.unreadable:
            typer.echo(f"{len(tokens.unreadable):,} could not be read: unreadable-*.txt names them, their rows are NaN")
    processes.leave()


@data.command()
def build(
    size: Annotated[int, typer.Option(min=16, help="Height and width of the images in pixels.")] = 128,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "all",
    view: Annotated[str, typer.Option(help="frontal or lateral.")] = "frontal",
    hospital: Annotated[str, typer.Option(help="standard or portable.")] = "standard",
) -> None:
    """Render the studies of a split into the cache."""
    from rrg_utils.runner import unknown

    splits = ("train", "val", "test")
    if split not in (*splits, "all"):
        raise unknown("split", split, [*splits, "all"])
    from rrg_utils.data import load_dataset

    _show_progress()
    for one in splits if split == "all" else (split,):
        typer.echo(
            f"{one}: {len(load_dataset('phantom', one, size, view=view, hospital=hospital))} {view} films of {size} px"
        )


@data.command()
def check(
    source: Annotated[str, typer.Option(help="phantom, iu_xray or mimic_cxr.")] = "phantom",
    root: Annotated[Path | None, typer.Option(help="The folder of real images.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the images.")] = False,
) -> None:
    """Count and verify the data of a source. Names every file that is missing or unreadable; exit code 1 if one is."""
    from rrg_utils.runner import unknown

    sources = ["phantom", "iu_xray", "mimic_cxr"]
    if source not in sources:
        raise unknown("data source", source, sources)
    if source == "phantom":
        if root is not None:
            raise RRGError("the phantom source reads its data from the installed wheels: leave --root out")
        return _check_reports()
    from rrg_utils.data import radiographs

    found = radiographs.check(source, root, decode=not quick)
    for problem in found.problems:
        typer.echo(problem)
    for what, count in found.counts.items():
        typer.echo(f"{count:9,} {what}")
    if found.problems:
        count = len(found.problems)
        credentialed = "; the list names credentialed data, do not share it" if source == "mimic_cxr" else ""
        raise RRGError(f"{count:,} problem{'s' * (count != 1)}, listed above{credentialed}")


def _check_reports() -> None:
    """The data wheels and the counts of the cohort: 3,955 reports, 3,425 with findings, 2,955 with two images."""
    from rrg_utils.data import cohort, load_indiana

    reports = load_indiana()
    found = cohort(reports)
    for step, count, images in found.flow:
        typer.echo(f"{count:6,} reports  {images:6,} images  {step}")
    counts = [count for _, count, _ in found.flow]
    if counts != [3955, 3425, 2955] or found.flow[-1][2] != 6091:
        raise RRGError(
            f"the cohort counts are {counts}, not [3955, 3425, 2955], or its images are not 6,091: "
            "pip install --force-reinstall --no-deps torchxrayvision"
        )
    sizes = ", ".join(f"{name} {len(getattr(found, name)):,}" for name in ("train", "val", "test"))
    typer.echo(f"{sizes}; split digest {found.digest}")


@app.command("bench")
def bench_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Systems; all by default.")] = None,
    profile: Profile = "cpu",
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Of the training; may be given several times.")] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Developers: into results/bench, which notebook 09 shows.")
    ] = False,
) -> None:
    """Measure every system alike on the test films, into runs/PROFILE/results; what is there is not made again."""
    from rrg_utils import bench, claims
    from rrg_utils.readers import SYSTEMS, system
    from rrg_utils.runner import project_dir, show

    for name in names or ():
        system(name)
    bench.sizes(profile)
    results = claims.RESULTS if commit else project_dir() / "runs" / profile / "results"
    _show_progress()
    for each in seed or (0,):
        for name in names or SYSTEMS:
            path = bench.measure(name, each, profile, results)
            typer.echo(f"{bench.summary(path)} -> {show(path)}")


@app.command("report")
def report_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A chest radiograph: PNG, JPEG or DICOM.")],
    system: Annotated[str, typer.Option("--system", metavar="NAME", help="Which system writes, such as radscr.")],
    output: Annotated[Path | None, typer.Option(help="Folder for report.json and evidence.png.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    profile: Profile = "cpu",
    train: Annotated[bool, typer.Option("--train", help="Train the system if it is not trained yet.")] = False,
) -> None:
    """Let a trained system write the report of one image, with its evidence. Not for clinical use."""
    from rrg_utils.report import report
    from rrg_utils.runner import show

    _show_progress()
    made = report(image, system, output, seed=seed, profile=profile, train=train)
    typer.echo(f"{made.warning}\n\n{made.text}\n\nEvidence: {show(made.picture)}\n{made.warning}")


def _show_progress() -> None:
    from rrg_utils.artifacts import log_to

    log_to(sys.stderr)


if __name__ == "__main__":
    main()
