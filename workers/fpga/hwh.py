"""Hardware hand-off files (.hwh): which IPs a design has, at which addresses, and for which part; read, and written for emulated boards."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import msgspec

from workers.fpga.design import IpAddress

HWH_BYTES_MAX = 64 << 20
PROCESSING_SYSTEM = "zynq_ultra_ps_e"


class Hardware(msgspec.Struct, frozen=True):
    """What a .hwh says."""

    part: str
    ips: dict[str, str]
    """Name -> VLNV, as `xilinx.com:ip:axi_dma:7.1`."""


class Register(msgspec.Struct, frozen=True):
    """One register of an IP; fields are (name, first bit, bits, access)."""

    name: str
    offset: int
    access: str = "read-write"
    fields: tuple[tuple[str, int, int, str], ...] = ()


class Ip(msgspec.Struct, frozen=True):
    """An IP as it is written into a .hwh."""

    address: IpAddress
    vlnv: str
    interface: str
    registers: tuple[Register, ...] = ()
    parameters: tuple[tuple[str, int], ...] = ()


def read_hwh(data: bytes) -> Hardware:
    """Raises ValueError for what is no .hwh."""
    if len(data) > HWH_BYTES_MAX or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("it is too large, or declares entities")
    try:
        root = ET.fromstring(data)  # noqa: S314 - declarations of entities were refused
    except ET.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from None
    system = root.find("SYSTEMINFO")
    if root.tag != "EDKSYSTEM" or system is None:
        raise ValueError("it has no SYSTEMINFO: it is no hardware hand-off file")
    part = "-".join(value for name in ("DEVICE", "PACKAGE") if (value := system.get(name, "")))
    ips = {module.get("INSTANCE", ""): module.get("VLNV", "") for module in root.iter("MODULE")}
    return Hardware(part, ips)


def write_hwh(design: str, device: str, package: str, ips: Sequence[Ip], clock_mhz: float) -> str:
    """A .hwh for an emulated Zynq UltraScale+ board."""
    modules = "".join(map(_module, ips))
    ranges = "".join(
        f'<MEMRANGE ADDRESSBLOCK="Reg" BASEVALUE="0x{ip.address.base:08X}" HIGHVALUE="0x{ip.address.base + ip.address.size - 1:08X}" '
        f'INSTANCE="{ip.address.name}" MASTERBUSINTERFACE="M_AXI_HPM0_FPD" MEMTYPE="REGISTER" SLAVEBUSINTERFACE="{ip.interface}"/>'
        for ip in ips
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<EDKSYSTEM EDWVERSION="1.2" TIMESTAMP="emulated" VIVADOVERSION="emulated">'
        f'<SYSTEMINFO ARCH="zynquplus" DEVICE="{device}" NAME={quoteattr(design)} PACKAGE="{package}" SPEEDGRADE="-2"/>'
        f"<EXTERNALPORTS/><EXTERNALINTERFACES/><MODULES>{_processing_system(ranges, clock_mhz)}{modules}</MODULES></EDKSYSTEM>\n"
    )


def _module(ip: Ip) -> str:
    name, registers = ip.address.name, "".join(map(_register, ip.registers))
    parameters = "".join(f'<PARAMETER NAME="{key}" VALUE="{value}"/>' for key, value in ip.parameters)
    return (
        f'<MODULE FULLNAME="/{name}" INSTANCE="{name}" MODTYPE="{ip.vlnv.split(":")[2]}" VLNV="{ip.vlnv}" '
        'IPTYPE="PERIPHERAL" MODCLASS="PERIPHERAL" IS_ENABLE="1">'
        f'<ADDRESSBLOCKS><ADDRESSBLOCK ACCESS="read-write" INTERFACE="{ip.interface}" NAME="Reg" RANGE="{ip.address.size}" USAGE="register">'
        f"<REGISTERS>{registers}</REGISTERS></ADDRESSBLOCK></ADDRESSBLOCKS><PARAMETERS>{parameters}</PARAMETERS><PORTS/>"
        f'<BUSINTERFACES><BUSINTERFACE NAME="{ip.interface}" TYPE="SLAVE" VLNV="xilinx.com:interface:aximm:1.0"/></BUSINTERFACES></MODULE>'
    )


def _register(register: Register) -> str:
    fields = "".join(
        f'<FIELD NAME="{name}"><PROPERTY NAME="DESCRIPTION" VALUE=""/><PROPERTY NAME="ACCESS" VALUE="{access}"/>'
        f'<PROPERTY NAME="BIT_OFFSET" VALUE="{first}"/><PROPERTY NAME="BIT_WIDTH" VALUE="{bits}"/></FIELD>'
        for name, first, bits, access in register.fields
    )
    properties = {
        "DESCRIPTION": register.name,
        "ADDRESS_OFFSET": register.offset,
        "SIZE": 32,
        "ACCESS": register.access,
        "IS_ENABLED": "true",
    }
    stated = "".join(f'<PROPERTY NAME="{key}" VALUE="{value}"/>' for key, value in properties.items())
    return f'<REGISTER NAME="{register.name}">{stated}<FIELDS>{fields}</FIELDS></REGISTER>'


def _processing_system(ranges: str, clock_mhz: float) -> str:
    clocks = "".join(
        f'<PARAMETER NAME="PSU__FPGA_PL{number}_ENABLE" VALUE="{int(number == 0)}"/>'
        f'<PARAMETER NAME="PSU__CRL_APB__PL{number}_REF_CTRL__SRCSEL" VALUE="IOPLL"/>'
        f'<PARAMETER NAME="PSU__CRL_APB__PL{number}_REF_CTRL__DIVISOR0" VALUE="15"/>'
        f'<PARAMETER NAME="PSU__CRL_APB__PL{number}_REF_CTRL__DIVISOR1" VALUE="1"/>'
        f'<PARAMETER NAME="PSU__CRL_APB__PL{number}_REF_CTRL__ACT_FREQMHZ" VALUE="{clock_mhz}"/>'
        for number in range(4)
    )
    name = PROCESSING_SYSTEM
    return (
        f'<MODULE FULLNAME="/{name}_0" INSTANCE="{name}_0" MODTYPE="{name}" VLNV="xilinx.com:ip:{name}:3.5" IS_PL="FALSE" '
        f'IPTYPE="PERIPHERAL" IS_ENABLE="1"><PARAMETERS>{clocks}</PARAMETERS><PORTS/>'
        '<BUSINTERFACES><BUSINTERFACE NAME="M_AXI_HPM0_FPD" TYPE="MASTER" VLNV="xilinx.com:interface:aximm:1.0"/></BUSINTERFACES>'
        f"<MEMORYMAP>{ranges}</MEMORYMAP></MODULE>"
    )
