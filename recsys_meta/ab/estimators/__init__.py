"""Estimators of the value of a target policy from the logged actions of another; each gives a contribution per row."""
