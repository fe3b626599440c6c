"""Graphs of stages, pure: what is wrong with one, what happens next in a run, and which variants the rest can be computed with."""
