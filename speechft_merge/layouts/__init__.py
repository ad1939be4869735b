"""Whose names the tensors bear: rules between naming schemes, pure functions of names and shapes."""
