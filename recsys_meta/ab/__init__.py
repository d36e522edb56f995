"""Offline A/B analysis: policies, off-policy estimators, experiment statistics over tables of logged actions."""
