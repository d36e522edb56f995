"""Which learner stands behind the name."""

import pytest
from toy_world import toy_world

from recsys_meta.algorithms.laddered import Laddered
from recsys_meta.algorithms.laddered_maml import LadderedMAML
from recsys_meta.algorithms.laddered_ridge import LadderedRidge


@pytest.mark.parametrize(
    ("loss", "chosen"), [("squared", LadderedRidge), ("softmax", LadderedMAML), ("bpr", LadderedMAML)]
)
def test_the_loss_tells_what_is_trained(loss, chosen) -> None:
    learner = Laddered(toy_world().sizes, loss=loss)
    assert type(learner.chosen) is chosen
    assert learner.chosen.loss == loss
    assert (learner.whole_catalogue, learner.negatives) == (
        learner.chosen.whole_catalogue,
        learner.chosen.negatives,
    )


def test_the_absolute_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="expected squared"):
        Laddered(toy_world().sizes, loss="absolute")
