"""What a link and the store ask of an operation: which node is to run it, and how large it is."""

from tallyboard_server.redis.calls import ScriptCall
from tallyboard_server.redis.keys import key_of
from tallyboard_server.redis.operations import Operation, Part, Read
from tallyboard_server.redis.rankings import EntriesRead
from tallyboard_server.redis.topology import Layout


def node_for(operation: Operation | ScriptCall, layout: Layout) -> str:
    """The URL of the node that has to run it."""
    if isinstance(operation, Part | ScriptCall):
        return layout.node_of(operation.partition)
    if isinstance(operation, EntriesRead):
        return layout.node_of(operation.ranking.partition)
    if isinstance(operation, Read):
        return layout.node_of_key(operation.keys[0])
    return layout.node_of_key(key_of(operation.arguments))


def items_of(operation: Operation | ScriptCall) -> int:
    """How many keys it has, or what is like them: for the bound on what waits."""
    if isinstance(operation, Part):
        return operation.items
    if isinstance(operation, ScriptCall):
        return sum(part.items for part in operation.parts)
    return len(operation.keys) if type(operation) is Read else 1


def weight_of(operation: Operation | ScriptCall) -> int:
    """How long Redis works on it: for the bound on a flush."""
    if isinstance(operation, Part):
        return operation.weight
    return operation.size if isinstance(operation, ScriptCall) else items_of(operation)
