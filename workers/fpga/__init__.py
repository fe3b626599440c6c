"""FPGA boards: the PYNQ backend, what it reads and writes, and a board emulated below pynq."""
