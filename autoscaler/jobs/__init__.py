"""The safe ground on RQ: what may travel in its jobs, and the classes that run nothing else.

RQ by itself imports and calls whatever function a stored job names, unpickles, and inflates without a bound: whoever can
write to its Redis runs code on every GPU host. Here a job is one signed text for one of a few operations, and everything
else that is stored with a job is ignored. `rq` is spoken in this package alone.
"""
