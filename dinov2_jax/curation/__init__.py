"""Curation: copies of a picture found and removed, clusters balanced, a pool made into a set."""
