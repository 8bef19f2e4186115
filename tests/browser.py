"""A real browser for tests of pages: the machine's chromium, driven by playwright, which downloads none of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless chromium; the test is skipped where there is none and none can be installed.

    Playwright keeps an event loop in this thread while it is open, so a fixture must not outlive its module.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def _chromium() -> str:
    found = _on_path()
    if found is None and os.geteuid() == 0 and Path("/etc/debian_version").exists():
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *command]
            subprocess.run(
                apt, check=False, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            )
        found = _on_path()
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on PATH; install chromium")
    return found


def _on_path() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)
