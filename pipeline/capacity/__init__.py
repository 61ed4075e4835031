"""What fits into a memory, and how fast it would train and read."""
