"""Pure decisions of the data plane: no clock, no randomness, no logging, no client library."""
