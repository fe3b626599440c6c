"""The project's own accelerator in Verilog: a dense network with int8 weights behind AXI4-Stream and AXI4-Lite."""
