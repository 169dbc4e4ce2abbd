"""How costs grow with the backlog and with the fleet. `python -m bench.growth`."""
