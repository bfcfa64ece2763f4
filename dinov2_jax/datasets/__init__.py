"""Evaluation data sets in the file formats in which they are published.

Opening a set checks it before a picture is read: lists that disagree, a class without pictures or a
missing picture raise SourceError, one sentence.
"""
