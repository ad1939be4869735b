"""Carries a plan out: chunks, arithmetic, workers. It decides nothing."""
