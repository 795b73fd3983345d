"""The batch worker: takes parts from RQ, draws them in slots of one engine, stores the files."""
