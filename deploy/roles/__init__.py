"""One module per role: how it is built from settings. A process imports its own only, so that a restart costs no more than it must."""
