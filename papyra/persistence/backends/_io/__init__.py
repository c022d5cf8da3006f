"""Bridges between an event loop and blocking calls, or calls that know asyncio alone."""
