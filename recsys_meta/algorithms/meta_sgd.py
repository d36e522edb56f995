"""Meta-SGD: one gradient step, of which the initialization, the size and the direction of every entry are learned.

Z. Li, F. Zhou, F. Chen, H. Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, arXiv 1707.09835, 2017.

    phi = theta_t - a * grad L_support(theta_t)        a: as many entries as theta, of either sign, learned with it

What differs from the paper: theta_t is the shared initialization plus what is known of the user, only the head is adapted,
and a starts at one number for all entries instead of at random.
"""

from typing import Any, ClassVar

from recsys_meta.algorithms.maml import MAML
from recsys_meta.tensors import Sizes


class MetaSGD(MAML):
    """MAML of one step with a learned rate per entry, and nothing else learned about the step.

    Args:
        sizes: features of users and items to provide for.
        step_size: initial entries of a.
        settings: of ``MAML``, but those of its step rule.
    """

    contract_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {"loss": "squared", "dim": 8},
        {"loss": "bpr", "dim": 8, "step_size": 1.0},
    )

    def __init__(self, sizes: Sizes, *, step_size: float = 0.1, **settings: Any) -> None:
        rule: dict[str, Any] = {"num_steps": 1, "step_sizes": "per_entry", "shot_power": 0.0, "pull": 0.0}
        refuse(settings, rule)
        super().__init__(sizes, step_size=step_size, **settings, **rule)
        self.shot_power.requires_grad_(False)


def refuse(settings: dict[str, Any], rule: dict[str, Any]) -> None:
    """Raises ValueError for settings that would make another algorithm of it."""
    found = sorted(settings.keys() & rule.keys())
    if found:
        raise ValueError(f"found settings {', '.join(found)}, which the algorithm fixes")
