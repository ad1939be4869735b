"""Runs stage 1 of Speech-FT, stable fine-tuning: schedule, a stage for any torch model, a callback for the Trainer."""

from speechft_merge.stage1.schedule import Schedule
from speechft_merge.stage1.stage import StableFineTuning

__all__ = ["Schedule", "StableFineTuning"]
