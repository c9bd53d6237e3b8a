"""Leaderboards without a service: handlers that send one command of redis-py, or one statement to
Postgres, a request.

They answer the contract's messages, and hold no more than a member and its score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import redis
from google.protobuf.message import Message
from psycopg_pool import ConnectionPool

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.benchmarks.scores import BATCH, FILL, Plan, name_of

KEY = "naive:board"
MEMBERS = 100_000
PLAN = Plan(FILL, MEMBERS, 1)
ADD, INCREASE, TOP, RANK, SQL_TOP, SQL_RANK = (
    "ZADD", "ZINCRBY", "ZREVRANGE", "ZREVRANK", "SqlTop", "SqlRank",
)  # fmt: skip
_TABLE = """
CREATE TABLE entries (
    board text NOT NULL, member text NOT NULL, score float8 NOT NULL, reached_at int8 NOT NULL,
    PRIMARY KEY (board, member));
CREATE INDEX ON entries (board, score DESC, reached_at, member);
"""
_TOP = """
SELECT member, score FROM entries WHERE board = %s
ORDER BY score DESC, reached_at, member LIMIT %s
"""
_RANK = """
SELECT own.score, (SELECT count(*) FROM entries AS other
                   WHERE other.board = own.board AND other.score > own.score)
FROM entries AS own WHERE own.board = %s AND own.member = %s
"""


class Method(NamedTuple):
    """A handler and its messages."""

    behavior: Callable[[Any, grpc.ServicerContext], Message]
    request: type[Any]
    response: type[Any]


def fill(socket: str, postgres: str) -> None:
    """Gives both stores the same 100,000 members."""
    rows = []
    for index in range(MEMBERS // BATCH):
        numbers, scores = PLAN.batch(index)
        rows += list(zip(map(name_of, numbers.tolist()), scores.tolist(), strict=True))
    with redis.Redis(unix_socket_path=socket) as client:
        client.delete(KEY)
        for at in range(0, len(rows), BATCH):
            client.zadd(KEY, dict(rows[at : at + BATCH]))
    with ConnectionPool(postgres, min_size=1) as pool, pool.connection() as conn:
        conn.execute("DROP TABLE IF EXISTS entries")
        conn.execute(_TABLE)
        with conn.cursor().copy("COPY entries FROM STDIN") as copy:
            for place, (member, score) in enumerate(rows):
                copy.write_row((KEY, member, score, place))
        conn.execute("ANALYZE entries")


def methods(socket: str, postgres: str, threads: int) -> dict[str, Method]:
    """The handlers by name, on pools with a connection for every thread."""
    client = redis.Redis(unix_socket_path=socket, max_connections=threads)
    pool = ConnectionPool(postgres, min_size=threads, max_size=threads, kwargs={"autocommit": True})
    pool.wait()

    def add(request: pb.SubmitScoreRequest, context: grpc.ServicerContext) -> Message:
        client.zadd(KEY, {request.submission.member: request.submission.score}, gt=True)
        return pb.SubmitScoreResponse()

    def increase(request: pb.SubmitScoreRequest, context: grpc.ServicerContext) -> Message:
        client.zincrby(KEY, request.submission.score, request.submission.member)
        return pb.SubmitScoreResponse()

    def top(request: pb.ListEntriesRequest, context: grpc.ServicerContext) -> Message:
        found: Any = client.zrevrange(KEY, 0, request.page_size - 1, withscores=True)
        return _page((member.decode(), score) for member, score in found)

    def rank(request: pb.GetEntryRequest, context: grpc.ServicerContext) -> Message:
        found: Any = client.zrevrank(KEY, request.member)
        return pb.GetEntryResponse(entry=pb.Entry(rank=found + 1, member=request.member))

    def sql_top(request: pb.ListEntriesRequest, context: grpc.ServicerContext) -> Message:
        with pool.connection() as conn:
            return _page(conn.execute(_TOP, (KEY, request.page_size)).fetchall())

    def sql_rank(request: pb.GetEntryRequest, context: grpc.ServicerContext) -> Message:
        with pool.connection() as conn:
            found: Any = conn.execute(_RANK, (KEY, request.member)).fetchone()
        entry = pb.Entry(rank=found[1] + 1, member=request.member, score=found[0])
        return pb.GetEntryResponse(entry=entry)

    submit = (pb.SubmitScoreRequest, pb.SubmitScoreResponse)
    listing = (pb.ListEntriesRequest, pb.ListEntriesResponse)
    getting = (pb.GetEntryRequest, pb.GetEntryResponse)
    return {
        ADD: Method(add, *submit),
        INCREASE: Method(increase, *submit),
        TOP: Method(top, *listing),
        RANK: Method(rank, *getting),
        SQL_TOP: Method(sql_top, *listing),
        SQL_RANK: Method(sql_rank, *getting),
    }


def _page(rows: Any) -> pb.ListEntriesResponse:
    response = pb.ListEntriesResponse(total_size=MEMBERS)
    for place, (member, score) in enumerate(rows, start=1):
        response.entries.add(rank=place, member=member, score=score)
    return response
