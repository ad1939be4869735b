"""How the pair that ships in examples/pair was made."""
