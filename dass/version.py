"""The version of this package, written into every record."""

__version__ = "0.1.0"
