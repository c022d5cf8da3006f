-- For Redis before version 7: the ids in the quarantine are the server's own.
redis.replicate_commands()
