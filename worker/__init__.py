"""The batch worker: takes parts from RQ, draws them in the slots of an engine, stores the files."""
