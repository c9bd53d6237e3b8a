"""Shows the answer of GetStatus to a person or to a program."""

from collections import Counter

from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tallyboard.v1 import operations_pb2

_NO_REDIS = "unknown while Redis is away"
_NO_POSTGRES = "unknown while Postgres is away"


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
    console.print(f"partitions: {shown or 'none'}", highlight=False)
    away = {store.name for store in status.stores if not store.available}
    console.print(f"not yet in Postgres: {_changed(status, away)}", highlight=False)
    journal = f"{status.journal_depth:,} batches"
    console.print(f"journal: {_NO_POSTGRES if 'postgres' in away else journal}", highlight=False)
    console.print(f"durability: {status.durability}, version: {status.server_version}")


def _changed(status: operations_pb2.GetStatusResponse, away: set[str]) -> str:
    """What is not in Postgres yet, and for how long: as far as the stores that answer can tell."""
    if "redis" in away:
        return _NO_REDIS
    keys = f"{sum(partition.dirty_keys for partition in status.partitions):,} keys"
    if "postgres" in away:
        return f"{keys}; for how long is {_NO_POSTGRES}"
    return f"{keys}, for {status.checkpoint_lag.ToTimedelta().total_seconds():.1f} s"


def _state_name(state: operations_pb2.PartitionState.ValueType) -> str:
    name = operations_pb2.PartitionState.Name(state)
    return name.removeprefix("PARTITION_STATE_").lower()
