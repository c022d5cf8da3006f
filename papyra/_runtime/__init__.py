"""The runtime: how one actor lives, from its first instance to its end."""
