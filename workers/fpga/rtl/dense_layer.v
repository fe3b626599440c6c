// One dense layer: a stream of 8-bit inputs against a memory of int8 weights, all outputs at once.
// Accumulators are 32 bits wide; a finished row is drained while the next one comes in.
module dense_layer #(
  parameter INPUTS = 4,
  parameter OUTPUTS = 4,
  parameter SIGNED_INPUT = 0,
  parameter SHIFT = 8,          // requantisation: divide by 2^SHIFT, round half to even, clip to 0..HIGH
  parameter HIGH = 255,
  parameter LAST = 0,           // the last layer gives its accumulators as they are
  parameter ID = 0,
  parameter WEIGHTS_FILE = "",  // one row of OUTPUTS bytes for each input, the first output in the lowest byte
  parameter BIASES_FILE = ""    // one row of all biases, 32 bits each
) (
  input  wire        clk,
  input  wire        rst,
  input  wire [7:0]  s_data,
  input  wire        s_valid,
  output wire        s_ready,
  output wire [31:0] m_data,
  output wire        m_valid,
  input  wire        m_ready
);
  localparam INPUT_BITS = INPUTS > 1 ? $clog2(INPUTS) : 1;
  localparam OUTPUT_BITS = OUTPUTS > 1 ? $clog2(OUTPUTS) : 1;

  reg [OUTPUTS*8-1:0]  weights [0:INPUTS-1];
  reg [OUTPUTS*32-1:0] biases  [0:0];
  reg signed [31:0] accumulators [0:OUTPUTS-1];
  reg signed [31:0] finished [0:OUTPUTS-1];
  reg [INPUT_BITS-1:0]  taken;
  reg [OUTPUT_BITS-1:0] drained;
  reg full;

`ifdef VERILATOR
  string file;
  initial begin
    if ($value$plusargs($sformatf("weights%0d=%%s", ID), file)) $readmemh(file, weights);
    if ($value$plusargs($sformatf("biases%0d=%%s", ID), file)) $readmemh(file, biases);
  end
`else
  initial begin
    $readmemh(WEIGHTS_FILE, weights);
    $readmemh(BIASES_FILE, biases);
  end
`endif

  wire last_input = taken == INPUT_BITS'(INPUTS - 1);
  wire last_output = drained == OUTPUT_BITS'(OUTPUTS - 1);
  wire leaves = full && m_ready && last_output;
  // The last input of a row needs a place for the row.
  assign s_ready = !last_input || !full || leaves;
  wire takes = s_valid && s_ready;

  wire signed [8:0] value = SIGNED_INPUT != 0 ? {s_data[7], s_data} : {1'b0, s_data};
  wire [OUTPUTS*8-1:0] row = weights[taken];

  assign m_valid = full;
  generate
    if (LAST != 0) begin : raw
      assign m_data = finished[drained];
    end else begin : requantised
      assign m_data = {24'd0, requantise(finished[drained])};
    end
  endgenerate

  function automatic [7:0] requantise(input signed [31:0] accumulator);
    reg signed [31:0] quotient;
    reg [31:0] rest, half;
    begin
      quotient = accumulator >>> SHIFT;
      rest = accumulator & ((32'd1 << SHIFT) - 1);
      half = SHIFT == 0 ? 32'd0 : 32'd1 << (SHIFT == 0 ? 0 : SHIFT - 1);
      if (SHIFT != 0 && (rest > half || (rest == half && quotient[0]))) quotient = quotient + 1;
      requantise = quotient < 0 ? 8'd0 : quotient > HIGH ? 8'(HIGH) : quotient[7:0];
    end
  endfunction

  integer k;
  always @(posedge clk) begin
    if (leaves) full <= 1'b0;
    if (full && m_ready) drained <= last_output ? '0 : drained + 1'b1;
    if (takes) begin
      for (k = 0; k < OUTPUTS; k = k + 1) begin
        if (last_input)
          finished[k] <= (taken == 0 ? $signed(biases[0][32*k +: 32]) : accumulators[k]) + value * $signed(row[8*k +: 8]);
        else
          accumulators[k] <= (taken == 0 ? $signed(biases[0][32*k +: 32]) : accumulators[k]) + value * $signed(row[8*k +: 8]);
      end
      taken <= last_input ? '0 : taken + 1'b1;
      if (last_input) full <= 1'b1;
    end
    if (rst) begin
      taken <= '0;
      drained <= '0;
      full <= 1'b0;
    end
  end
endmodule
