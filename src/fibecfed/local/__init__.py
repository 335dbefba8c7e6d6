"""What a client computes: pure functions on a task, its trainable tensors and its examples."""
