"""Training: state, schedules, optimizer, step and the loop."""
