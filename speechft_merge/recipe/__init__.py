"""Parses and validates once what is mixed and how: alphas, rules, weights, heads, element type."""

from speechft_merge.recipe.recipe import Recipe, override, read_recipe

__all__ = ["Recipe", "override", "read_recipe"]
