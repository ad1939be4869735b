"""Carries out a plan: chunks, arithmetic, workers. It decides nothing."""
