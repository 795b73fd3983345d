"""The HTTP API: validates requests, passes them to the store, and answers. Never loads torch."""
