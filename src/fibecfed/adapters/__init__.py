"""What is trained beside the frozen backbone: LoRA by PEFT, and the adapters that the compared methods bring."""
