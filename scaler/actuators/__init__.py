"""Actuators: who starts and stops worker processes, found by name through the entry-point group `headrace.actuators`."""
