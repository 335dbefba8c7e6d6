"""Labelled text, spread over clients: where it comes from, how it becomes tokens, and who holds which example."""
