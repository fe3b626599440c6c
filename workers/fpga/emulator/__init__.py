"""A board emulated below pynq: memory, registers and fabric, behind a `pynq.Device` in this process or a PYNQ.remote server in another."""
