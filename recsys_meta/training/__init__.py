"""Meta-training of any learner: one Lightning module, checkpoints to resume from, bundles to keep."""
