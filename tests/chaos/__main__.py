"""`python -m tests.chaos NAME ...`: break the system in one of these ways; each has its own options, told by `NAME --help`."""

import importlib
import os
import sys

NAMES = {
    "simulate": "seeded schedules of faults in virtual time, checked after every step",
    "inject": "faults at random moments into real collections on a real Ray, and the table of what they did",
}


def main() -> None:
    """Run what the first argument names."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in NAMES:
        known = "\n".join(f"  {each:15} {what}" for each, what in NAMES.items())
        sys.exit(f"error: a kind of chaos must be one of those below, got {name!r}; choose one\n{known}")
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is a part of what a seed repeats
        command = [sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606 - ourselves
    importlib.import_module(f"tests.chaos.{name}").main(arguments)


if __name__ == "__main__":
    main()
