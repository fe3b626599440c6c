// The index of the largest of COUNT values of a stream; of equal ones, the first.
module argmax #(
  parameter COUNT = 4
) (
  input  wire               clk,
  input  wire               rst,
  input  wire signed [31:0] s_data,
  input  wire               s_valid,
  output wire               s_ready,
  output reg  [31:0]        m_data,
  output reg                m_valid,
  input  wire               m_ready
);
  reg [31:0] index, best;
  reg signed [31:0] largest;
  wire better = index == 0 || s_data > largest;
  wire last = index == COUNT - 1;
  assign s_ready = !last || !m_valid || m_ready;

  always @(posedge clk) begin
    if (m_valid && m_ready) m_valid <= 1'b0;
    if (s_valid && s_ready) begin
      if (better) begin
        largest <= s_data;
        best <= index;
      end
      index <= last ? 0 : index + 1;
      if (last) begin
        m_data <= better ? index : best;
        m_valid <= 1'b1;
      end
    end
    if (rst) begin
      index <= 0;
      m_valid <= 1'b0;
    end
  end
endmodule
