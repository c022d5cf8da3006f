"""The parts of the Redis Streams backend."""

from papyra.exceptions import MissingExtra

try:
    import redis.asyncio  # noqa: F401
except ImportError as error:
    raise MissingExtra("Redis Streams need redis-py: pip install 'papyra[redis]'") from error
