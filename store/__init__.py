"""Where service and worker meet: Redis keys, scripts, records of jobs, results. No torch here."""
