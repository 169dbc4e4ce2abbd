"""The agent: one a GPU host. It reads its orders itself, and starts, watches and ends the workers of its host.

Never here: how many workers there should be, torch, NVML, engines.
"""
