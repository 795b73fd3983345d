"""The HTTP API: validates requests, hands them to the store, answers. It never loads torch."""
