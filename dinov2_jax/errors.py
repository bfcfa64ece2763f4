"""Errors that are told in one sentence.

A room that refuses something raises a subclass of `UserError`; `main` prints its message without a
traceback and exits with status 2.
"""


class UserError(ValueError):
    """Something that the user can mend; the message is one sentence with the remedy."""


class EvaluationError(UserError):
    """Features, labels or settings that cannot be evaluated."""
