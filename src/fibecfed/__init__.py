"""Fine-tune language models on text that cannot leave its owners."""
