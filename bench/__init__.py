"""Measurements, side by side in one run. Never here: tests; nothing in `tests/` depends on a time measured here."""
