"""The hands: ways to start and retire worker processes. A new one is one new file and one row in a table."""
