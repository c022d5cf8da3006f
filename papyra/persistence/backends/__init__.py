"""The stores that a persistence actor can host."""
