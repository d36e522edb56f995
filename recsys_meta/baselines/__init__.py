"""Recommenders that need no meta-training, behind the same contract: what every meta-learner has to beat."""
