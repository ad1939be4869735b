"""What happened, as data: manifest, rows of layers, model card."""
