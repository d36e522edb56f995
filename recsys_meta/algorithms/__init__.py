"""Meta-learners, one file each, behind the contract of base.py."""
