"""Using what a run trained: its models found, loaded, asked, scored on further files, and taken elsewhere."""
