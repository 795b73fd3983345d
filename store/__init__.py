"""Where service and worker meet: Redis keys, scripts, request records, results. No torch here."""
