"""What users import and type: the client of the service, and the `pathar` command.

from pathar import Client
"""

from pathar.client import AsyncClient, Client
from pathar.pairs import Event, Job, Label, Pair

__all__ = ["AsyncClient", "Client", "Event", "Job", "Label", "Pair"]
