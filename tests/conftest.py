"""What all tests share: no example of hypothesis fails for the time that it took, as other work on a machine decides that."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
