"""One file a protocol: what it refuses, what it reads, and how it judges."""
