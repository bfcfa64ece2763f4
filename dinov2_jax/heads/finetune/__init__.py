"""Fine-tuning of a backbone with a linear head, end to end or with low-rank factors."""
