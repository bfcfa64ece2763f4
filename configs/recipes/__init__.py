"""Recipes of several stages, from pretraining to a family of models."""
