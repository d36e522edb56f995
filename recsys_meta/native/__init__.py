"""What is compiled on the machine that serves: two loops in C, each with a plain torch path that answers the same."""

from recsys_meta.native.library import Kernels, Network, Shelf, fits, kernels, plain_scores

__all__ = ["Kernels", "Network", "Shelf", "fits", "kernels", "plain_scores"]
