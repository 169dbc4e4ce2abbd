"""The engines, and the one table that names them. A new engine is one new file and one row in `registry.py`."""
