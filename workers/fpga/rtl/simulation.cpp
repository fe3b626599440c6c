// The verilated network behind a C interface: registers over AXI4-Lite, rows over AXI4-Stream, every clock edge counted.
#include <cstdint>
#include "Vdense_network.h"
#include "verilated.h"

struct Simulation {
  VerilatedContext context;
  Vdense_network* top = nullptr;
  uint64_t cycles = 0;
  void tick() {
    top->clk = 0;
    top->eval();
    top->clk = 1;
    top->eval();
    ++cycles;
  }
};

static const int kAnswerCyclesMax = 1000;

extern "C" {

Simulation* simulation_new(int count, const char** arguments) {
  auto* s = new Simulation;
  s->context.commandArgs(count, arguments);
  s->top = new Vdense_network{&s->context};
  s->top->rst = 1;
  for (int i = 0; i < 4; ++i) s->tick();
  s->top->rst = 0;
  s->tick();
  return s;
}

void simulation_delete(Simulation* s) {
  s->top->final();
  delete s->top;
  delete s;
}

uint64_t simulation_cycles(Simulation* s) { return s->cycles; }

int simulation_write(Simulation* s, uint32_t address, uint32_t value) {
  auto* t = s->top;
  t->awaddr = address;
  t->wdata = value;
  t->awvalid = t->wvalid = t->bready = 1;
  int n = 0;
  do s->tick(); while (!t->awready && ++n < kAnswerCyclesMax);
  t->awvalid = t->wvalid = 0;
  while (t->bvalid && ++n < kAnswerCyclesMax) s->tick();
  t->bready = 0;
  return n < kAnswerCyclesMax ? 0 : -1;
}

uint32_t simulation_read(Simulation* s, uint32_t address) {
  auto* t = s->top;
  t->araddr = address;
  t->arvalid = t->rready = 1;
  int n = 0;
  do s->tick(); while (!t->rvalid && ++n < kAnswerCyclesMax);
  const uint32_t value = t->rdata;
  t->arvalid = 0;
  s->tick();
  t->rready = 0;
  return value;
}

// Streams `inputs` bytes in and collects `outputs` words; returns how many came within `cycles_max`. `last` gets where TLAST stood, or -1.
int simulation_stream(Simulation* s, const uint8_t* in, int inputs, uint32_t* out, int outputs, int64_t cycles_max, int* last) {
  auto* t = s->top;
  int sent = 0, came = 0;
  *last = -1;
  t->m_axis_tready = 1;
  while (came < outputs && cycles_max--) {
    t->s_axis_tvalid = sent < inputs;
    if (sent < inputs) {
      t->s_axis_tdata = in[sent];
      t->s_axis_tlast = sent == inputs - 1;
    }
    t->clk = 0;
    t->eval();
    const bool takes = t->s_axis_tvalid && t->s_axis_tready;
    const bool gives = t->m_axis_tvalid && t->m_axis_tready;
    const uint32_t value = t->m_axis_tdata;
    if (gives && t->m_axis_tlast) *last = came;
    t->clk = 1;
    t->eval();
    ++s->cycles;
    if (takes) ++sent;
    if (gives) out[came++] = value;
  }
  t->s_axis_tvalid = 0;
  t->m_axis_tready = 0;
  return came;
}
}
