"""Decides what becomes of each tensor, and whether the models belong together; nothing is decided later."""
