"""Experiments: who was exposed to what, what they did, what differs between variants, and how sure one may be of it."""
