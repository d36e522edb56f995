"""Encoders of users and items, heads that an inner loop adapts, and the losses it descends."""
