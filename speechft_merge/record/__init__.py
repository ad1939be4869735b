"""Describes a merge as data: manifest, rows of layers, model card."""
