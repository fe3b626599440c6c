"""Which fabric an emulated board computes with, by name; the RTL one is compiled when a design is loaded."""

from __future__ import annotations

from pathlib import Path

from workers.fpga.design import Design
from workers.fpga.emulator.board import MakeFabric
from workers.fpga.emulator.fabric import NUMPY, RTL, Fabric, NumpyFabric
from workers.fpga.network import Network

FABRICS = (NUMPY, RTL)


def fabric_maker(name: str, cache_folder: Path) -> MakeFabric:
    """Raises ValueError for an unknown name."""
    if name == NUMPY:
        return NumpyFabric
    if name != RTL:
        raise ValueError(f"fabric {name!r} is unknown: use one of {', '.join(FABRICS)}")

    def rtl(design: Design, network: Network) -> Fabric:
        from workers.fpga.emulator.rtl_fabric import RtlFabric  # noqa: PLC0415 - needs a compiler, which the other fabric does not

        return RtlFabric(design, network, cache_folder)

    return rtl
