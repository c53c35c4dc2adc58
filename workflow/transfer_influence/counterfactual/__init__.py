"""Retrain with units removed, and see whether the target gets better or worse as predicted."""
