"""MIPS: weights of what actions are like, not of the actions themselves, where there are too many of these.

Saito & Joachims, "Off-Policy Evaluation for Large Action Spaces via Embeddings", ICML 2022. With e the embedding of the action
(here: cells of its categorical features) the marginal weight is the mean of w among logged actions of that embedding (eq. 9):

    w(x, e) = E_logging[w(x, a) | x, e],     V = 1/n sum_i w(x_i, e_i) r_i

Unbiased where the action matters to the reward through its embedding alone. The mean is taken over the logged rows of the cell
(embedding and position), each user's own rows left out, so that no row weighs itself.
"""

import numpy as np

from recsys_meta.ab.estimators.sample import Contributions, Numbers, Sample


def marginalized_ips(sample: Sample) -> Contributions:
    """IPS with marginal weights."""
    return Contributions(marginal_weights(sample) * sample.rewards)


def marginal_weights(sample: Sample) -> Numbers:
    """The mean weight of each row's cell over the other users, [n]; the row's own where no other user is in the cell."""
    if sample.embeddings is None:
        raise ValueError("there are no embeddings of the actions; expected the cell of every logged row")
    weights = sample.weights
    cells = sample.embeddings
    # Sums of every user within every cell, so that they can be taken away again.
    _, own = np.unique(cells * (int(sample.users.max()) + 1) + sample.users, return_inverse=True)
    own_sum, own_rows = np.bincount(own, weights), np.bincount(own)
    n_cells = int(cells.max()) + 1
    others_sum = np.bincount(cells, weights, n_cells)[cells] - own_sum[own]
    others = np.bincount(cells, minlength=n_cells)[cells] - own_rows[own]
    mean: Numbers = np.divide(others_sum, others, out=weights.copy(), where=others > 0)
    return mean
