"""`python -m tests.benchmarks NAME ...`: run one benchmark; each has its own options."""

import importlib
import sys
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def main() -> None:
    """Run the benchmark that the first argument names."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in NAMES:
        sys.exit(f"error: a benchmark must be one of {', '.join(NAMES)}, got {name!r}; choose one")
    importlib.import_module(f"tests.benchmarks.{name}").main(arguments)


if __name__ == "__main__":
    main()
