"""Tells whose naming scheme a checkpoint follows and what its names mean: pure functions of names and shapes."""
