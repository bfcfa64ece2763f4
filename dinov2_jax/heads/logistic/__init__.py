"""Logistic regression with an L2 penalty, exact, for many values of C."""
