"""What a configured run would cost: its step is compiled for hardware that is not there."""
