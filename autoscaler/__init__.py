"""The autoscaler role: keeps as many workers as the queue needs, and the hands that start and retire them.

Never here: HTTP routes, engines, direct Redis commands (those live in `dispatch`).
"""
