"""`penstock simulate`: strategies ranked on a trace of arrivals, in simulated time.

trace: what arrives. fleet: on what. batching: how one worker works. meeting: who gets what. simulation: the events.
report and plot: what came of it.
"""
