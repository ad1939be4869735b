"""A Hub for tests on loopback: what `huggingface_hub` needs of one, and faults on demand."""
