"""Starts a program that ends with its parent: ``python -I -S launcher.py PARENT PROGRAM ...``

``PARENT`` is the number of the parent's process. It imports nothing of posedrop, so that it
starts within milliseconds.
"""

import ctypes
import os
import signal
import sys

if __name__ == "__main__":
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[1]):
            sys.exit("posedrop is gone already")
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell on purpose
