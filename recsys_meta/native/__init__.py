"""What is compiled on the machine that works: loops in C, each beside a plain torch path that answers the same.

``library`` builds and loads, and holds what serves; ``inner_loop`` adapts and meta-trains.
"""

from recsys_meta.native.library import Kernels, Network, Shelf, fits, kernels, plain_scores

__all__ = ["Kernels", "Network", "Shelf", "fits", "kernels", "plain_scores"]
