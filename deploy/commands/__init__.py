"""The sub-commands of `headrace`, one group of them per file; loaded by name when they are called."""
