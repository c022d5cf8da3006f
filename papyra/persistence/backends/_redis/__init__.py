"""The parts of the Redis Streams backend."""

from papyra.exceptions import MissingExtra

try:
    import redis.asyncio  # noqa: F401
except ImportError as error:
    raise MissingExtra(
        "Redis Streams need redis-py, which Papyra's extra 'redis' brings: "
        "pip install '.[redis]' in Papyra's checkout"
    ) from error
