"""The gateway role: HTTP in, Redis streams out and back.

Never here: engines, GPUs, scaling decisions, direct Redis commands (those live in `dispatch`).
"""
