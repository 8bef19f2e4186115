"""Small networks: threads cost more than they bring, and their number is a part of what fixes the bits."""

from collections.abc import Iterator

import pytest

from dass.threads import one_thread


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
