"""The worker role: pulls what its memory can hold and runs it on an engine.

Never here: HTTP routes, scaling decisions, direct Redis commands (those live in `dispatch`).
"""
