"""What processes do in tests: by the job's words, count, raise, die or wait for ever."""

from __future__ import annotations

import os
import time

from deploy.simulation.processes import Going, Progress, Tell, Waiting


def work(job: bytes, tell: Tell) -> bytes:
    """The job's bytes back, unless they ask for trouble."""
    if job == b"raise":
        raise ValueError("as asked")
    if job == b"die":
        os._exit(7)
    if job == b"hang":
        tell(Waiting("optimizer 'odd'", 0.3))
        time.sleep(60.0)
    if job == b"slow":
        tell(Waiting("optimizer 'slow'", 30.0))
        tell(Going())
        tell(Progress(1.5))
    return job + str(os.getpid()).encode()
