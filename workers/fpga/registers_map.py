"""Register maps and offsets of the IPs that the backend drives, for the hand-off files written here and for whoever drives them."""

from __future__ import annotations

from workers.fpga.hwh import Register

CONTROL = 0x00
AP_START, AP_DONE, AP_IDLE = 1, 2, 4
ROWS, CYCLES = 0x10, 0x28
"""Of the dense network: rows of the next batch; clock cycles that the last one took."""
DMA_ADDRESS, DMA_ADDRESS_HIGH, DMA_ROWS = 0x10, 0x14, 0x1C
"""Of FINN's DMA engines."""
SEND, RECEIVE = 0x00, 0x30
"""The two channels of an AXI DMA."""
STATUS, ADDRESS, ADDRESS_HIGH, LENGTH = 0x04, 0x18, 0x1C, 0x28
STATUS_HALTED, STATUS_IDLE, STATUS_ERRORS = 0x01, 0x02, 0x70

_CONTROL = Register(
    "CTRL",
    CONTROL,
    fields=(
        ("AP_START", 0, 1, "read-write"),
        ("AP_DONE", 1, 1, "read-only"),
        ("AP_IDLE", 2, 1, "read-only"),
        ("AP_READY", 3, 1, "read-only"),
        ("AUTO_RESTART", 7, 1, "read-write"),
    ),
)
AXI_DMA_REGISTERS = tuple(
    Register(name, offset)
    for name, offset in (
        ("MM2S_DMACR", 0x00),
        ("MM2S_DMASR", 0x04),
        ("MM2S_SA", 0x18),
        ("MM2S_SA_MSB", 0x1C),
        ("MM2S_LENGTH", 0x28),
        ("S2MM_DMACR", 0x30),
        ("S2MM_DMASR", 0x34),
        ("S2MM_DA", 0x48),
        ("S2MM_DA_MSB", 0x4C),
        ("S2MM_LENGTH", 0x58),
    )
)
AXI_DMA_PARAMETERS = (
    ("c_include_sg", 0),
    ("c_micro_dma", 0),
    ("c_sg_length_width", 26),
    ("c_include_mm2s", 1),
    ("c_include_mm2s_dre", 1),
    ("c_m_axi_mm2s_data_width", 32),
    ("c_mm2s_burst_size", 256),
    ("c_include_s2mm", 1),
    ("c_include_s2mm_dre", 1),
    ("c_m_axi_s2mm_data_width", 32),
    ("c_s2mm_burst_size", 256),
)
ACCELERATOR_REGISTERS = (
    _CONTROL,
    Register("GIER", 0x04),
    Register("IP_IER", 0x08),
    Register("IP_ISR", 0x0C),
    Register("batch", ROWS),
    Register("in_features", 0x18, "read-only"),
    Register("out_features", 0x20, "read-only"),
    Register("cycles", CYCLES, "read-only"),
)
FINN_DMA_REGISTERS = (_CONTROL, Register("address_1", DMA_ADDRESS), Register("address_2", DMA_ADDRESS_HIGH), Register("numReps", DMA_ROWS))
