"""worker.memory: what is freed while a film is computed stays, and goes back behind it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Prints the pages that the kernel had to fill for a second array, and what stays when it is gone.
PROGRAM = """
import resource, sys
import numpy as np
from worker.memory import freed_memory_kept

MIB = 2**20

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // MIB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def used(mib):
    room = np.empty(mib * MIB, np.uint8)
    room[::4096] = 1

used(8)
before = resident()
with freed_memory_kept():
    used(100)
    kept, count = resident(), faults()
    used(100)
    again = faults() - count
print(again, kept - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do as they do")
def test_freed_memory_stays_until_the_film_is_over() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    again, kept, left = map(int, done.stdout.split())
    assert again < 1000  # of 25,600 pages
    assert kept > 90
    assert left < 20
