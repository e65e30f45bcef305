"""lora_exp: LoRA experiments, from one command to a number one can trust."""
