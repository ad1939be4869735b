"""Real speech, real encoders: run from the root of the repository, as `python -m examples.speech_ft.run`."""
