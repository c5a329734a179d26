"""The stores by their names."""

from pipeline.storage.address import Address
from pipeline.storage.az import Az
from pipeline.storage.file import Options
from pipeline.storage.gs import Gs
from pipeline.storage.hf import Hf
from pipeline.storage.memory import Memory
from pipeline.storage.s3 import S3
from pipeline.storage.store import Store

_STORES: dict[str, type[Store]] = {"s3": S3, "gs": Gs, "az": Az, "hf": Hf, "memory": Memory}


def connect(address: Address, options: Options, patient: bool = True) -> Store:
    """The store at the address's root; connections are made once in a process and shared by its threads.

    Raises InputError for a missing package and for options of no use.
    """
    return _STORES[address.store](address, options, patient)
