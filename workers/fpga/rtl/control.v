// AXI4-Lite registers of the network: the control block of HLS kernels (start, done, idle), rows of the next batch, and clock cycles of the last.
module control #(
  parameter INPUTS = 4,
  parameter OUTPUTS = 4
) (
  input  wire        clk,
  input  wire        rst,
  input  wire [15:0] awaddr,
  input  wire        awvalid,
  output reg         awready,
  input  wire [31:0] wdata,
  input  wire        wvalid,
  output reg         wready,
  output reg         bvalid,
  input  wire        bready,
  input  wire [15:0] araddr,
  input  wire        arvalid,
  output reg         arready,
  output reg  [31:0] rdata,
  output reg         rvalid,
  input  wire        rready,
  input  wire        row_left,   // the last value of a row has been taken
  output reg         busy,
  output wire        last_row
);
  reg done;
  reg [31:0] rows, left, cycles;
  wire writes = awvalid && wvalid && !bvalid;
  assign last_row = left == 1;

  always @(posedge clk) begin
    awready <= 1'b0;
    wready <= 1'b0;
    arready <= 1'b0;
    if (bvalid && bready) bvalid <= 1'b0;
    if (rvalid && rready) rvalid <= 1'b0;
    if (busy) cycles <= cycles + 1;
    if (busy && row_left) begin
      left <= left - 1;
      if (last_row) begin
        busy <= 1'b0;
        done <= 1'b1;
      end
    end
    if (writes) begin
      awready <= 1'b1;
      wready <= 1'b1;
      bvalid <= 1'b1;
      if (awaddr == 16'h00 && wdata[0] && !busy) begin
        busy <= 1'b1;
        done <= 1'b0;
        left <= rows;
        cycles <= 0;
      end
      if (awaddr == 16'h10) rows <= wdata;
    end
    if (arvalid && !rvalid && !arready) begin
      arready <= 1'b1;
      rvalid <= 1'b1;
      case (araddr)
        16'h00: begin
          rdata <= {28'd0, done, !busy, done, busy};
          done <= 1'b0;
        end
        16'h10: rdata <= rows;
        16'h18: rdata <= INPUTS;
        16'h20: rdata <= OUTPUTS;
        16'h28: rdata <= cycles;
        default: rdata <= 0;
      endcase
    end
    if (rst) begin
      busy <= 1'b0;
      done <= 1'b0;
      rows <= 1;
      left <= 0;
      cycles <= 0;
      bvalid <= 1'b0;
      rvalid <= 1'b0;
    end
  end
endmodule
