"""This project's side of each benchmark; imported in worker processes."""
