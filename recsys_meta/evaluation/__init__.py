"""Metrics, intervals and protocols: what "better" means, over judgements of single users."""
