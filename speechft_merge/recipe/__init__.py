"""Parses and validates once what is mixed and how: alphas, rules, weights, heads, element type."""

from speechft_merge.recipe.file import read_recipe
from speechft_merge.recipe.recipe import Recipe, override

__all__ = ["Recipe", "override", "read_recipe"]
