"""`python -m workers.fpga.emulator SETTINGS [PARENT_PID]`: the board's server, with one thread for linear algebra from the start."""

from __future__ import annotations

import os

# A pool of threads that wakes up for each batch costs more than it gives; the library reads this when it is loaded.
os.putenv("OPENBLAS_NUM_THREADS", "1")

from workers.fpga.emulator.server import main

if __name__ == "__main__":
    main()
