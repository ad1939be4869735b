"""Whose names the tensors bear: rules between naming schemes. Pure functions of names and shapes; no bytes are touched."""
