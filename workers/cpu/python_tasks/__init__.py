"""Python tasks: callables of the user's that a CPU worker runs in child processes, beside its models."""
