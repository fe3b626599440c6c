"""Checkers of the promises: apart from the simulator, they believe nothing but what they are told of as it happens."""
