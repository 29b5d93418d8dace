"""A small Hugging Face Hub for tests: real HTTP for the real client, in memory, on 127.0.0.1."""

from .access import Account
from .faults import STORAGE_LIMIT, Fault
from .repos import Repo
from .server import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer

__all__ = ["OTHER_TOKEN", "READ_TOKEN", "STORAGE_LIMIT", "WRITE_TOKEN", "Account", "Fault", "HubServer", "Repo"]
