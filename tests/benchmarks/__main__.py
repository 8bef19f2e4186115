"""`python -m tests.benchmarks NAME ...`: run one benchmark; each has its own options, told by `NAME --help`."""

import importlib
import sys

NAMES = {
    "embed": "maps of candidates: batched and shared, against one student at a time",
    "cohort": "distillation: student-epochs per second, against one student at a time",
    "levers": "what was weighed for a cohort's step, each against the cohort as it ships",
    "meta": "meta-training: episodes, against a plain loop",
    "store": "the run database: add, resume, scan, compact, by number of records",
    "control-plane": "what queue, lane and database cost per run that trains nothing",
    "quickstart": "where the time of the quickstart goes",
    "search-workers": "search --workers against search in process, by number of candidates",
}


def main() -> None:
    """Run the benchmark that the first argument names."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in NAMES:
        known = "\n".join(f"  {each:15} {what}" for each, what in NAMES.items())
        sys.exit(f"error: a benchmark must be one of those below, got {name!r}; choose one\n{known}")
    importlib.import_module(f"tests.benchmarks.{name.replace('-', '_')}").main(arguments)


if __name__ == "__main__":
    main()
