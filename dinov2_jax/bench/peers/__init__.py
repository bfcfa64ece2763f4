"""The other side of each benchmark, in PyTorch; imported in worker processes of their own."""
