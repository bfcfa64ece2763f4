"""The error of this room."""


class EvaluationError(ValueError):
    """Features, labels or settings that cannot be evaluated; the message is one sentence."""
