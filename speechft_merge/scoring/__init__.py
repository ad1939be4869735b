"""Scores a model on a user's data: by a command, a Python function, a ridge probe or word error rate."""
