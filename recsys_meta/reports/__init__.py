"""Pages from what evaluations found: one file each, readable without a network."""
