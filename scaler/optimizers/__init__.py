"""Optimizers: plug-ins that turn a snapshot into a plan. Pure."""
