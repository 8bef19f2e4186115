"""The buttons: one file is one verb of `python -m jobs`."""
