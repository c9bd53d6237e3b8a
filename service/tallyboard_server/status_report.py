"""Shows the answer of GetStatus to a person or to a program."""

from collections import Counter

from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tallyboard.v1 import operations_pb2


def status_as_json(status: operations_pb2.GetStatusResponse) -> str:
    """The whole answer as JSON, with fields that are zero as well."""
    return MessageToJson(
        status, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )


def print_status(status: operations_pb2.GetStatusResponse, console: Console) -> None:
    """Print the stores as a table, and the partitions and checkpoints in a few lines."""
    stores = Table("store", "state", "version", "address", "detail")
    for store in status.stores:
        state = Text("available", "green") if store.available else Text("away", "red")
        words = (store.version, store.address, store.detail)
        stores.add_row(Text(store.name), state, *map(Text, words))
    console.print(stores)
    states = Counter(partition.state for partition in status.partitions)
    shown = ", ".join(f"{number} {_state_name(state)}" for state, number in sorted(states.items()))
    dirty = sum(partition.dirty_keys for partition in status.partitions)
    lag = status.checkpoint_lag.ToTimedelta().total_seconds()
    console.print(f"partitions: {shown or 'none'}", highlight=False)
    console.print(f"not yet in Postgres: {dirty:,} keys, for {lag:.1f} s", highlight=False)
    console.print(f"journal: {status.journal_depth:,} batches", highlight=False)
    console.print(f"durability: {status.durability}, version: {status.server_version}")


def _state_name(state: operations_pb2.PartitionState.ValueType) -> str:
    name = operations_pb2.PartitionState.Name(state)
    return name.removeprefix("PARTITION_STATE_").lower()
