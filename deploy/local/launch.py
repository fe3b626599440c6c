"""Becomes another program that dies with the process that started this one: `launch.py PARENT_PID PROGRAM ARGUMENT...`.

Run by path with `python -I -S`, so it imports the standard library only and costs some ten milliseconds.
The kernel means the parent's *thread*: what a thread starts dies with that thread, so start from the main one.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent's life, and become the program; exits with 127 where that cannot be run."""
    parent_pid, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # The kernel keeps this across exec and sends it when the parent ends, however it ends.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            # The parent ended before the line above: nobody would ever end this process.
            sys.exit(1)
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
