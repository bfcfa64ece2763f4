"""Configurations: reading, overriding and checking them, without importing JAX."""
