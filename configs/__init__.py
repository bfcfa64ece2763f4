"""Configurations: default.py holds every field, the other files state only what they change."""
