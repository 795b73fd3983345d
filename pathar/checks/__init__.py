"""What `pathar doctor` looks at: this machine (`host`), the engine (`engine`), and Redis, workers,
storage and the API (`services`). Each check is a plain function of an `Installation`; none prints.
"""
