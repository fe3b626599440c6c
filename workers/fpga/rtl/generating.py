"""Writes the top level of a network, and the memory files that go into its bitfile; dense_layer.v, argmax.v and control.v are the same for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.fpga.network import Network

FOLDER = Path(__file__).parent
SOURCES = ("dense_layer.v", "argmax.v", "control.v")
TOP = "dense_network"
SIMULATION = "simulation.cpp"

_HEAD = """// Written by workers/fpga/rtl/generating.py.
module dense_network (
  input  wire        clk,
  input  wire        rst,
  input  wire [15:0] awaddr,
  input  wire        awvalid,
  output wire        awready,
  input  wire [31:0] wdata,
  input  wire        wvalid,
  output wire        wready,
  output wire        bvalid,
  input  wire        bready,
  input  wire [15:0] araddr,
  input  wire        arvalid,
  output wire        arready,
  output wire [31:0] rdata,
  output wire        rvalid,
  input  wire        rready,
  input  wire [7:0]  s_axis_tdata,
  input  wire        s_axis_tvalid,
  output wire        s_axis_tready,
  input  wire        s_axis_tlast,
  output wire [31:0] m_axis_tdata,
  output wire        m_axis_tvalid,
  input  wire        m_axis_tready,
  output wire        m_axis_tlast
);
  wire busy, last_row;
  wire unused = s_axis_tlast;
"""
_LAYER = """
  wire [31:0] data{here};
  wire valid{here}, ready{here};
  dense_layer #(.INPUTS({inputs}), .OUTPUTS({outputs}), .SIGNED_INPUT({signed}), .SHIFT({shift}), .HIGH({high}), .LAST({last}), .ID({id}),
                .WEIGHTS_FILE("weights{id}.hex"), .BIASES_FILE("biases{id}.hex")) layer{id} (
    .clk(clk), .rst(rst), .s_data(data{before}[7:0]), .s_valid(valid{before}), .s_ready(ready{before}),
    .m_data(data{here}), .m_valid(valid{here}), .m_ready(ready{here}));
"""
_ARGMAX = """
  wire [31:0] data{here};
  wire valid{here}, ready{here};
  argmax #(.COUNT({count})) choice (
    .clk(clk), .rst(rst), .s_data(data{before}), .s_valid(valid{before}), .s_ready(ready{before}),
    .m_data(data{here}), .m_valid(valid{here}), .m_ready(ready{here}));
"""
_TAIL = """
  reg [31:0] place;
  wire gives = m_axis_tvalid && m_axis_tready;
  wire row_left = gives && place == {outputs} - 1;
  always @(posedge clk) if (rst) place <= 0; else if (gives) place <= row_left ? 0 : place + 1;
  assign m_axis_tdata = data{end};
  assign m_axis_tvalid = busy && valid{end};
  assign ready{end} = busy && m_axis_tready;
  assign m_axis_tlast = place == {outputs} - 1 && last_row;

  control #(.INPUTS({inputs}), .OUTPUTS({outputs})) registers (
    .clk(clk), .rst(rst), .awaddr(awaddr), .awvalid(awvalid), .awready(awready), .wdata(wdata), .wvalid(wvalid), .wready(wready),
    .bvalid(bvalid), .bready(bready), .araddr(araddr), .arvalid(arvalid), .arready(arready), .rdata(rdata), .rvalid(rvalid), .rready(rready),
    .row_left(row_left), .busy(busy), .last_row(last_row));
endmodule
"""


def check_buildable(network: Network) -> None:
    """Raises ValueError for a network that this accelerator cannot be."""
    if network.input_threshold is not None or any(layer.thresholds is not None for layer in network.layers):
        raise ValueError("thresholds are not in the RTL accelerator: it requantises by shifting")
    if any(not 0 <= layer.high <= 255 or not 0 <= layer.shift < 32 for layer in network.layers):
        raise ValueError("activations are 0..255 and shifts 0..31 in the RTL accelerator")


def top_level(network: Network) -> str:
    """dense_network.v. Raises ValueError."""
    check_buildable(network)
    layers = network.layers
    text = _HEAD + (
        "  wire [31:0] data0 = {24'd0, s_axis_tdata};\n  wire ready0;\n  wire valid0 = busy && s_axis_tvalid;\n"
        "  assign s_axis_tready = busy && ready0;\n"
    )
    for number, layer in enumerate(layers):
        text += _LAYER.format(
            here=number + 1,
            before=number,
            id=number,
            inputs=layer.inputs,
            outputs=layer.outputs,
            signed=int(number == 0 and network.input_signed),
            shift=layer.shift,
            high=layer.high,
            last=int(number == len(layers) - 1),
        )
    end = len(layers)
    if network.argmax:
        text += _ARGMAX.format(here=end + 1, before=end, count=layers[-1].outputs)
        end += 1
    return text + _TAIL.format(end=end, inputs=network.inputs, outputs=network.outputs)


def memory_files(network: Network) -> dict[str, str]:
    """Hexadecimal files for $readmemh, by name."""
    files: dict[str, str] = {}
    for number, layer in enumerate(network.layers):
        # The highest place is written first: the last output.
        rows = layer.weights[:, ::-1].astype(np.int8).view(np.uint8)
        files[f"weights{number}.hex"] = "\n".join(row.tobytes().hex() for row in np.ascontiguousarray(rows)) + "\n"
        files[f"biases{number}.hex"] = layer.bias[::-1].astype(">i4").tobytes().hex() + "\n"
    return files
