"""The parts of the Redis Streams backend."""
