"""The published results, each reproduced by one scenario on the simulator: `make papers`, or `make papers ROW=loki-capacity`."""
