"""Turns adapters into the fine-tunes that they stand for: LoRA, and adapters that are a part of their model."""
