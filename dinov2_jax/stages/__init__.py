"""Recipes: several trainings, one after another, from pretraining to a family of models."""
