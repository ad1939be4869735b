"""What the user asked of a merge: alphas, rules, weights, heads, element type; parsed and validated once."""
