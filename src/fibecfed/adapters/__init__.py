"""What is trained beside the frozen base model: LoRA by PEFT, and the adapters that the compared methods bring."""
