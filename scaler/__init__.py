"""The control plane: from a snapshot of the system to a plan."""
