"""Stage 1 of Speech-FT for one's own recordings, and on to the merge; README.md says how."""
