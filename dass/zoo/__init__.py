"""What the package brings along: nothing yet."""

from pathlib import Path

from dass.errors import ConfigError

RECORDS = Path(__file__).parent / "records"


def shipped_records() -> Path:
    """The folder, laid out as a store, of the records that this version ships.

    Raises:
        ConfigError: it ships none.
    """
    if not RECORDS.is_dir():
        raise ConfigError(
            "--records shipped needs records in the package, got a version without: no records ship with this version "
            "yet; leave --records out and name a store of your own with --store"
        )
    return RECORDS
