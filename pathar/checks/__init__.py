"""The checks of `pathar doctor`: of this machine (`host`), the engine (`engine`), and Redis,
workers, storage and the API (`services`). A check is a function of an `Installation`. None prints.
"""
