"""What every process of the service stands on: settings, logs, traces, and its connections to Redis
and to object storage. Knows no jobs and no keys.
"""
