"""Whether CKA to the base can choose alpha: an experiment whose rule and verdict were fixed before its results."""
