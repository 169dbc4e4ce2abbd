"""The shared ground: the laws of the queue, and the only place that speaks Redis.

Never here: HTTP, engines, processes, a GPU. The three roles import this package; it imports none of them.
"""
