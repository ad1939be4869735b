"""Whose names a checkpoint has, and what they mean: pure functions of names and shapes."""
