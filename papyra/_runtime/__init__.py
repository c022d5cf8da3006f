"""The runtime: one actor from its first instance to its end.

`cell` puts an actor together from its parts, `loop` runs it, `lifecycle` is its state machine.
The system starts cells, and ends them by `shutdown`.
"""
