"""What the commands share that sample a model on problems without training: what they are told, prompts, judged answers."""
