"""Decides which alpha: the cells of a grid, their results, intervals, the pick, and shares of the work."""
