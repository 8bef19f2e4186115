"""Distillation-aware student search: which student will be best after distillation from this teacher on this data?

The science alone: it knows no cluster, no flags and reads no environment variables. See README, "Dive into the code".
"""

from dass.version import __version__

__all__ = ["__version__"]
