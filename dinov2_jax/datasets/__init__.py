"""Evaluation data sets in the file formats in which they are published.

Every set is checked when it is opened, before a picture is read: list files that do not agree, a
class without pictures and a picture that is missing are one sentence (SourceError).
"""
