"""recsys_meta: every user is a task. One shared initialization, adapted to each cold-start user at once."""

__version__ = "0.1.0"
