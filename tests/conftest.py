"""One thread for all tests: faster for tiny tensors, kind to machines that run several at once, and repeatable."""

import torch

torch.set_num_threads(1)
