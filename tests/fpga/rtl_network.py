"""The small network of the RTL tests: the same on both sides of the simulator."""

import numpy as np
from fpga_stage import random_network

NETWORK = random_network((6, 4, 3), seed=8, shift=4, input_signed=True)


def inputs(rows):
    return np.random.default_rng(9).integers(-128, 128, (rows, 6)).astype(np.int8)
