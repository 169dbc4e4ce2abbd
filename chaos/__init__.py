"""Chaos: real processes, a seeded nemesis, a recorded history and an offline checker of what Penstock promises.

`python -m chaos --seed 7 --minutes 3`. Not shipped. Never here: anything that Penstock itself needs.
"""
