"""What all processes of the service share: settings, logs, traces, and connections to Redis and to
object storage. Knows no jobs and no keys.
"""
