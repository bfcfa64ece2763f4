"""What a configured run would cost, found by compiling its step for hardware that is not there."""
