"""Tests that need genuine pynq: they run in an environment of their own (`make fpga-test`), and are not even collected in the other one."""

from __future__ import annotations

import importlib.util
import warnings

collect_ignore_glob = [] if importlib.util.find_spec("pynq") else ["test_*.py"]

if not collect_ignore_glob:
    # It warns of every processor that is no Zynq.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pynq.pl_server.remote_device  # noqa: F401
