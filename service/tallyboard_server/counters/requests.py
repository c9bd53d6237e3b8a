"""Request ids: one id stands for one content, and a repeat is recognised.

That the same request counts once is the business of its token, in the partition it changes. The
claim here only tells when an id comes back with other contents, whichever partition they touch.
"""

import hashlib

from tallyboard_server.errors import FieldViolation, InvalidArgument, Unavailable
from tallyboard_server.redis.keys import claim_key, home_partition, request_key
from tallyboard_server.redis.operations import Token
from tallyboard_server.redis.store import RedisStore

_COMPLETED = b"!"


class RequestIds:
    """Claims and tokens of request ids.

    Args:
        ttl: seconds that an id is remembered.
    """

    def __init__(self, store: RedisStore, partitions: int, ttl: int) -> None:
        self._store = store
        self._partitions = partitions
        self._ttl = ttl

    def claim(self, tenant: str, request_id: str, contents: str, deadline: float) -> bool:
        """Claims the id for these contents; tells whether the request was completed before.

        Raises:
            InvalidArgument: it was used with other contents.
        """
        fingerprint, key = _fingerprint(contents), self._key(tenant, request_id)
        try:
            _, found = self._store.commands(
                [("SET", key, fingerprint, "NX", "EX", self._ttl), ("GET", key)], deadline
            )
        except Unavailable as error:
            found = self._store.claim_elsewhere(tenant, request_id, fingerprint, error, deadline)
        if found is None:
            raise Unavailable("the request id could not be remembered")
        if found.removesuffix(_COMPLETED) != fingerprint:
            raise InvalidArgument(
                "REQUEST_ID_REUSED",
                [FieldViolation("request_id", "was used before with other contents")],
            )
        return bool(found.endswith(_COMPLETED))

    def complete(self, tenant: str, request_id: str, contents: str, deadline: float) -> None:
        """Notes that the request is done: for requests whose tokens alone can't tell."""
        key, value = self._key(tenant, request_id), _fingerprint(contents) + _COMPLETED
        self._store.commands([("SET", key, value, "EX", self._ttl)], deadline)

    def token(self, partition: int, tenant: str, request_id: str) -> Token:
        """The token of a request in one partition."""
        return Token("r", request_key(partition, tenant, request_id), "", self._ttl)

    def _key(self, tenant: str, request_id: str) -> str:
        return claim_key(home_partition(tenant, request_id, self._partitions), tenant, request_id)


def _fingerprint(contents: str) -> bytes:
    return hashlib.blake2b(contents.encode(), digest_size=12).hexdigest().encode()
