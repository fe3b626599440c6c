"""Model families with what their variants cost on which type of worker, for scenarios of the simulator."""
