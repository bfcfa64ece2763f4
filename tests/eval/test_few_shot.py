"""Few shots: what is chosen by the mean over tries is reported by its mean over tries."""

import numpy as np
import pytest

from dinov2_jax.eval.protocols.few_shot import _choose


def test_the_best_mean_over_tries_is_chosen_where_it_may_be_chosen():
    """The best of each try would be 90 on test, and a choice on test would take "b"."""
    val = [{"a": 60.0, "b": 70.0, "c": 10.0}, {"a": 80.0, "b": 50.0, "c": 90.0}]
    test = [{"a": 40.0, "b": 90.0, "c": 0.0}, {"a": 30.0, "b": 80.0, "c": 90.0}]
    tries = [{"val": {"linear": v}, "test": {"linear": t}} for v, t in zip(val, test, strict=True)]
    assert _choose(tries, "linear", "val") == ("a", pytest.approx(np.mean([40, 30])))
    assert _choose(tries, "linear", "test") == ("b", pytest.approx(np.mean([90, 80])))
