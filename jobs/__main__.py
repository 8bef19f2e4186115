"""The command line: `python -m jobs VERB`, or `dass VERB`. Every verb can be killed and run again."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from dass.errors import BudgetSpentError, DassError, InputError
from dass.precision import full_float32
from jobs import recipes
from jobs.config import Config, keys, parse_settings, source_in, with_values
from jobs.console import Console, shown
from jobs.job import Job
from jobs.options import (
    AnewOption,
    DryRunOption,
    JsonOption,
    MethodsOption,
    OutputOption,
    PageOption,
    PredictorOption,
    RecipeOption,
    Records,
    RecordsOption,
    RetrainOption,
    SeedsOption,
    SetOption,
    SourceOption,
    StoreOption,
    TakeoverOption,
    TargetOption,
    TargetsOption,
    TeacherOption,
    TuneOption,
    WorkersOption,
)
from jobs.output import check_output
from jobs.recipe_file import DEFAULT, default_recipe, from_toml

DEFAULT_STORE = "./dass-store"
LEARNING = "digits"  # the default of verbs that learn from records
EXIT_BAD_INPUT, EXIT_FAILED, EXIT_BUDGET_SPENT, EXIT_INTERRUPTED = 2, 1, 3, 130

app = typer.Typer(
    name="dass",
    help="Which student will be best after distillation from this teacher on this data?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def configured(recipe: str, settings: list[str] | None, source: str | None = None) -> Config:
    """The recipe, a file's values, `--set` and `--data`, each laid over the one before.

    The default recipe is cut to the measure of its digits: with images of one's own it is `pretrained`.
    """
    values = parse_settings(settings or ())
    given = source or source_in(values)
    if recipe.endswith(".toml"):
        config = from_toml(Path(recipe), recipes.get_recipe, given)
    else:
        config = recipes.get_recipe(default_recipe(given, recipes.get_recipe) if recipe == DEFAULT else recipe)
    config = with_values(config, values, "--set")
    return config if source is None else with_values(config, {"data": {"source": source}}, "--data")


def open_job(
    recipe: str, settings: list[str] | None, store: str, source: str | None, *, dry_run: bool, is_json: bool,
    takeover: bool = False,
) -> Job:  # fmt: skip
    """The job of these options; every error in them is raised before anything else happens."""
    return Job.open(
        configured(recipe, settings, source), store, Console(is_json=is_json), dry_run=dry_run, takeover=takeover
    )


def open_target_job(
    recipe: str, settings: list[str] | None, store: str, target: str | None, *, dry_run: bool, is_json: bool,
    takeover: bool = False,
) -> Job:  # fmt: skip
    """The same where `--data` gives a target; of a recipe whose images are all one target it gives these."""
    is_whole = configured(recipe, settings).data.split == "whole"
    source = target if is_whole else None
    return open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json, takeover=takeover)


@app.command()
def data(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, dry_run: DryRunOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Read images once, cut them into tasks, and pack both into the store."""
    from jobs import data as verb

    job = open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json)
    job.console.document(verb.run(job))


@app.command()
def teachers(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, dry_run: DryRunOption = False, takeover: TakeoverOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train the largest network of the space on every task that has no teacher yet."""
    from jobs import teachers as verb

    job = open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json, takeover=takeover)
    job.console.document(verb.run(job))


@app.command()
def collect(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, dry_run: DryRunOption = False, takeover: TakeoverOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Distil the sampled students on every task; missing teachers are trained first."""
    from jobs import collect as verb

    job = open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json, takeover=takeover)
    job.console.document(verb.run(job))


@app.command("meta-train")
def meta_train(
    recipe: RecipeOption = LEARNING, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, num_trials: TuneOption = None, output: PredictorOption = None,
    dry_run: DryRunOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Learn the predictor from the collected records."""
    from jobs import meta_train as verb
    from jobs import tune

    job = open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json)
    if output is not None:
        check_output(output)
    done = verb.run(job) if num_trials is None else tune.run(job, num_trials)
    if output is not None and not dry_run:
        verb.export(job, done["predictor"], output)
    job.console.document(done)


@app.command()
def calibrate(
    recipe: RecipeOption = LEARNING, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, output: PredictorOption = None, dry_run: DryRunOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """How far the store's predictor can be trusted, by tasks held out; `search` then says how sure it is."""
    from jobs import calibrate as verb

    job = open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json)
    if output is not None:
        verb.check_file(output)
    done = verb.run(job)
    if output is not None and not dry_run:
        verb.export(job, output)
    job.console.document(done)


@app.command("learning-curve")
def learning_curve(
    recipe: RecipeOption = LEARNING, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """What more collected runs would buy: short meta-trainings on parts of the records; minutes, nothing is written."""
    from jobs import learning_curve as verb

    job = Job.open(configured(recipe, settings, source), store, Console(is_json=is_json), dry_run=True, is_reader=True)
    job.console.document(verb.run(job))


@app.command()
def evaluate(
    recipe: RecipeOption = LEARNING, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    targets: TargetsOption = None, methods: MethodsOption = None, seeds: SeedsOption = 3, records: RecordsOption = Records.STORE,
    retrain: RetrainOption = False, output: PageOption = None, anew: AnewOption = False, dry_run: DryRunOption = False,
    is_json: JsonOption = False,
) -> None:  # fmt: skip
    """How well every method ranks the distilled students of the targets, all on the same records."""
    from dass.zoo.files import read_predictor
    from jobs import calibrate, shipped
    from jobs import evaluate as verb

    names: Sequence[str] = verb.split_names(methods or ())
    if records is Records.SHIPPED:
        shipped.check_options(None if recipe == LEARNING else recipe, targets)
        console = Console(is_json=is_json)
        job, known = shipped.open_shipped(settings, store, console, seeds=seeds, retrain=retrain, dry_run=dry_run)
        names, calibration = names or known.methods, read_predictor().calibration
    else:
        shipped.check_records(retrain=retrain)
        job = open_job(recipe, settings, store, None, dry_run=dry_run, is_json=is_json)
        calibration = calibrate.current_calibration(job)
    done = verb.run(
        job, names=names, seeds=seeds, sources=targets or (), output=output, is_anew=anew, calibration=calibration
    )
    job.console.document(done)


@app.command()
def contest(
    recipe: RecipeOption = LEARNING, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    targets: TargetsOption = None, methods: MethodsOption = None, dry_run: DryRunOption = False,
    takeover: TakeoverOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Let every method search in the budget on its own, distil what it ranks first, and compare the accuracies."""
    from jobs import contest as verb
    from jobs.evaluate import split_names

    job = open_job(recipe, settings, store, None, dry_run=dry_run, is_json=is_json, takeover=takeover)
    job.console.document(verb.run(job, names=split_names(methods or ()), sources=targets or ()))


@app.command()
def ship(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="The new folder.")],
    recipe: RecipeOption = LEARNING, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, methods: MethodsOption = None, seeds: SeedsOption = 3, dry_run: DryRunOption = False,
    is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Pack an evaluated benchmark into a folder without images: what `evaluate --records shipped` replays."""
    from jobs import evaluate
    from jobs import ship as verb

    job = open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json)
    job.console.document(verb.run(job, output, names=evaluate.split_names(methods or ()), seeds=seeds))


@app.command()
def search(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    target: TargetOption = None, teacher: TeacherOption = None, workers: WorkersOption = 0,
    dry_run: DryRunOption = False, takeover: TakeoverOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Rank thousands of students for a target in a budget."""
    from jobs import search as verb

    job = open_target_job(recipe, settings, store, target, dry_run=dry_run, is_json=is_json, takeover=takeover)
    job.console.document(verb.run(job, target, teacher, workers))


@app.command()
def distil(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    target: TargetOption = None, output: OutputOption = None, dry_run: DryRunOption = False, takeover: TakeoverOption = False,
    is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train the winner of the last search for good, and the controls beside it."""
    from jobs import distil as verb

    job = open_target_job(recipe, settings, store, target, dry_run=dry_run, is_json=is_json, takeover=takeover)
    job.console.document(verb.run(job, target, output))


@app.command()
def report(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    target: TargetOption = None, dry_run: DryRunOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write report.html and report.json into the store: what was found, how sure, and from what."""
    from jobs import report as verb

    job = open_target_job(recipe, settings, store, target, dry_run=dry_run, is_json=is_json)
    job.console.document(verb.run(job, target))


@app.command()
def status(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    is_json: JsonOption = False,
) -> None:  # fmt: skip
    """What is planned, done, running, failing and left, its pace and its cost, from the store alone.

    Of the recipe only its prices are used.
    """
    from jobs import status as verb

    config = configured(recipe, settings)
    job = Job.open(config, store, Console(is_json=is_json), dry_run=True, is_reader=True)
    job.console.document(verb.run(job))


@app.command()
def quickstart(
    recipe: RecipeOption = DEFAULT, settings: SetOption = None, store: StoreOption = DEFAULT_STORE,
    source: SourceOption = None, dry_run: DryRunOption = False, takeover: TakeoverOption = False, is_json: JsonOption = False,
) -> None:  # fmt: skip
    """The whole way: data, teachers, collection, search, distillation, report; meta-training where the recipe asks for it."""
    from jobs import quickstart as verb

    job = open_job(recipe, settings, store, source, dry_run=dry_run, is_json=is_json, takeover=takeover)
    job.console.document(verb.run(job))


@app.command()
def compact(
    store: StoreOption = DEFAULT_STORE,
    grace: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", help="How long objects that were packed wait to be removed.")
    ] = 60.0,
    is_json: JsonOption = False,
) -> None:
    """Gather loose records in one Parquet file per task; at any time, beside any other job."""
    from jobs import compact as verb

    verb.check_grace(grace)
    console = Console(is_json=is_json)
    job = Job.open(recipes.get_recipe(DEFAULT), store, console, dry_run=False, is_keeper=True)
    job.console.document(verb.run(job, grace))


@app.command()
def gc(
    store: StoreOption = DEFAULT_STORE,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; otherwise it is only listed.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", metavar="HOURS", help="Leave what was written since then.")
    ] = 24.0,
    is_json: JsonOption = False,
) -> None:
    """Show what nothing in the store refers to, and remove it with --delete."""
    from jobs import gc as verb

    verb.checked_age(older_than)
    console = Console(is_json=is_json)
    job = Job.open(
        recipes.get_recipe(DEFAULT), store, console, dry_run=not delete, is_reader=not delete, is_keeper=True
    )
    job.console.document(verb.run(job, older_than))


@app.command()
def export(
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE.parquet|FILE.csv", help="The file to write; its end says how.")
    ],
    store: StoreOption = DEFAULT_STORE,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    is_json: JsonOption = False,
) -> None:
    """Write all records as one file for other tools, one row per run."""
    from jobs import export as verb

    verb.check_output(output, force=force)
    console = Console(is_json=is_json)
    job = Job.open(recipes.get_recipe(DEFAULT), store, console, dry_run=True, is_reader=True, is_keeper=True)
    job.console.document(verb.run(job, output, force=force))


@app.command("keys")
def list_keys(recipe: RecipeOption = DEFAULT, settings: SetOption = None) -> None:
    """Every key that --set and a TOML recipe can give, with type, value in this recipe, and meaning."""
    config = configured(recipe, settings)
    columns = ("key", "type", "value", "meaning")
    Console().table(f"Keys of recipe {config.name}", columns, list(keys(config)), num_texts=len(columns))


def _terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that signal wants
    raise KeyboardInterrupt


def main() -> None:
    """Run the verb; bad input exits with 2, a failure with 1, a spent budget with 3, an interruption with 130.

    Each with one message.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with full_float32():
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        sys.stderr.write(f"error: {shown(_usage(error))}\n")
        sys.exit(EXIT_BAD_INPUT)
    except DassError as error:
        sys.stderr.write(f"error: {shown(str(error))}\n")
        sys.exit(_exit_code(error))
    if code == EXIT_INTERRUPTED:  # what typer returns for a KeyboardInterrupt
        sys.stderr.write("interrupted: what is finished is kept; run the same command again to go on\n")
        sys.exit(EXIT_INTERRUPTED)


def _exit_code(error: DassError) -> int:
    if isinstance(error, InputError):
        return EXIT_BAD_INPUT
    return EXIT_BUDGET_SPENT if isinstance(error, BudgetSpentError) else EXIT_FAILED


def _usage(error: typer.TyperException) -> str:
    """What is wrong with an option or a verb, in one line that ends with where to look."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} See `{f'{context.command_path} ' if context else ''}--help`."


if __name__ == "__main__":
    main()
