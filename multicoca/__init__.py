"""MultiCoCa: one contrastive captioner for interchangeable modalities."""
