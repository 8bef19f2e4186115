"""The options that verbs share, as typer wants them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs import recipes


class Records(StrEnum):
    """Whose records methods are compared on."""

    STORE = "store"
    SHIPPED = "shipped"


RecipeOption = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME|FILE.toml", help=f"Recipe ({', '.join(recipes.RECIPES)}) or a TOML file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=value", help="Override one key; may be repeated. `dass keys` lists them."),
]
StoreOption = Annotated[
    str, typer.Option("--store", metavar="DIR|s3://BUCKET/PREFIX", help="Where everything is kept.")
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="Images to cut tasks from: digits, imagefolder:PATH, parquet:PATH, torchvision:NAME:ROOT.",
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="SPEC", help="Your images as the target task; without it, the classes the recipe keeps aside."
    ),
]
TeacherOption = Annotated[
    Path | None,
    typer.Option("--teacher", metavar="FILE", help="Weights of your own teacher (safetensors); else one is trained."),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", metavar="N", help="Score in N processes with Ray Tune; 0: in this one (seconds).")
]
TargetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="SPEC", help="All images of a source as a target, instead of the recipe's; may be repeated."
    ),
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", metavar="NAME", help="Compare these alone: NAME,NAME, or repeated. An unknown one lists all."
    ),
]
SeedsOption = Annotated[
    int,
    typer.Option("--seeds", metavar="N", help="Repeats of every method that draws anything; intervals are over them."),
]
RecordsOption = Annotated[
    Records, typer.Option("--records", help="The store's records, or those that the package ships.")
]
RetrainOption = Annotated[
    bool,
    typer.Option(
        "--retrain",
        help="With shipped records: meta-train again what is meta-learned; a minute for DaSS, an hour for all.",
    ),
]
PageOption = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE.html", help="Also write the comparison as a page with pictures."),
]
AnewOption = Annotated[
    bool, typer.Option("--anew", help="Begin again on the records of today, where the store's evaluation had others.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Also write the recommended student here (safetensors).")
]
PredictorOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Also write the predictor here, for dass.zoo.load.")
]
TuneOption = Annotated[
    int | None,
    typer.Option("--tune", metavar="N", help="Try N settings of meta-training and keep the best, with Ray Tune."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan; change nothing.")]
TakeoverOption = Annotated[
    bool, typer.Option("--takeover", help="Train although another job trains the same; that one ends.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for scripts.")]
