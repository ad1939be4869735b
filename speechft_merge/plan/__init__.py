"""What becomes of each tensor, and whether the models belong together: decided here, and nowhere later."""
