"""Both stages of Speech-FT on real speech with a real encoder."""
