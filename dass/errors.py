"""Every error that this project raises on purpose.

    DassError
    ├── InputError                 what the user gave cannot be used; nothing was spent (also a ValueError)
    │   ├── ConfigError            an option, a recipe key or its value
    │   ├── DataError              images, labels, classes, splits
    │   ├── SpaceError             an architecture, an encoding, or weights that do not fit one
    │   ├── BudgetError            a budget that no candidate can meet
    │   └── PredictorMismatchError a predictor of another space, resolution, noise or unit
    ├── StoreError                 the store cannot be read or written
    │   ├── ObjectNotFoundError    no object under this key
    │   └── SchemaTooNewError      written by a newer version of this package
    ├── ClusterError               Ray, a lane or the queue failed in a way that a retry does not cure
    └── BudgetSpentError           a limit that the user set ended the job; nothing failed

A message has three parts: the rule, what was received, and the remedy. Each error is built from one string alone, so
that it survives pickling between processes.
"""


class DassError(Exception):
    """Base of all errors of this project."""


class InputError(DassError, ValueError):
    """What the user gave cannot be used."""


class ConfigError(InputError):
    """An option, a recipe key or its value is not legal."""


class DataError(InputError):
    """Images, labels, classes or splits cannot be used."""


class SpaceError(InputError):
    """An architecture or an encoding is not in the space, or weights do not fit it."""


class BudgetError(InputError):
    """No candidate can meet the budget."""


class PredictorMismatchError(InputError):
    """The predictor was made for another space, resolution, noise or unit."""


class StoreError(DassError):
    """The store cannot be read or written."""


class ObjectNotFoundError(StoreError):
    """There is no object under this key."""


class SchemaTooNewError(StoreError):
    """The store was written by a newer version of this package."""


class ClusterError(DassError):
    """Ray, a lane or the queue failed in a way that a retry does not cure."""


class BudgetSpentError(DassError):
    """A limit that the user set ended the job before its work was done; nothing failed."""
