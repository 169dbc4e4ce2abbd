"""The command line, and `up`: the one place that knows all roles."""
