"""What the user asked of a merge: alphas, rules, weights, heads, element type; parsed and validated once."""

from speechft_merge.recipe.recipe import Recipe, override, read_recipe

__all__ = ["Recipe", "override", "read_recipe"]
