"""The recordings and pre-trained weights that the examples are made from, and how they are read."""
