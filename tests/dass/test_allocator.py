"""In processes of their own: the setting holds for a process until its end."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from dass.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(10):
        torch.ones(16, 2**20)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, setting]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    assert faults("system") > 100
    assert faults("keep") < 10
