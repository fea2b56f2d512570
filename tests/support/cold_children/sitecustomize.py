"""Have no child of a worker import torch before it is needed.

Python imports this at the start of each process that has this folder on its PYTHONPATH.
"""

from worker.child import tasks

tasks.WARM |= {"gpu": (), "tables": ()}
tasks.TASKS["begin"] = "tests.support.faulty:begin"
