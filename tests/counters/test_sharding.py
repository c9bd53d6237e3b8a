"""Where writes go and where reads look."""

from hypothesis import given
from hypothesis import strategies as st

from tallyboard_server.counters.sharding import Sharding

names = st.text(min_size=1, max_size=20)
rules = st.dictionaries(names, st.integers(1, 64), max_size=4)


def sharding(default: int = 8, token_shards: int = 8, **changed: object) -> Sharding:
    """A sharding of 64 partitions."""
    arguments: dict[str, object] = {
        "partitions": 64,
        "default_shards": default,
        "by_prefix": {},
        "history": [],
        "token_shards": token_shards,
        "own_shard": 5,
    }
    return Sharding(**(arguments | changed))  # type: ignore[arg-type]


@given(names, names, names, st.integers(1, 64), st.integers(1, 64))
def test_a_repeat_finds_its_partition_after_a_change(
    tenant: str, counter: str, token: str, before: int, after: int
) -> None:
    old, new = sharding(before), sharding(after, history=[("", before)])
    assert old.place(tenant, counter, token) == new.place(tenant, counter, token)


@given(names, names, rules, rules, st.integers(1, 64), st.integers(1, 64), st.integers(0, 99))
def test_reads_cover_every_write_before_and_after_a_change(
    tenant: str,
    counter: str,
    old_rules: dict[str, int],
    new_rules: dict[str, int],
    old_default: int,
    new_default: int,
    own_shard: int,
) -> None:
    old = sharding(old_default, old_default, by_prefix=old_rules, own_shard=own_shard)
    history = [("", old_default), *old_rules.items()]
    new = sharding(
        new_default, old_default, by_prefix=new_rules, history=history, own_shard=own_shard
    )
    written = {which.place(tenant, counter, token) for which in (old, new) for token in (None, "t")}
    assert written <= set(new.all_shards(tenant, counter))


@given(names, names, st.integers(1, 64))
def test_shards_of_a_counter_are_in_different_partitions(
    tenant: str, counter: str, shards: int
) -> None:
    found = sharding(shards, shards).all_shards(tenant, counter)
    assert len({partition for partition, _ in found}) == shards


def test_there_are_never_more_shards_than_partitions() -> None:
    few = sharding(8, 8, partitions=4)
    assert len(few.all_shards("acme", "post:42")) == 4


def test_the_longest_prefix_counts() -> None:
    placed = sharding(by_prefix={"post:": 2, "post:4": 16, "p": 1})
    assert [placed.shards(name) for name in ("post:42", "post:1", "page", "x")] == [16, 2, 1, 8]


@given(names, names, st.integers(1, 64), st.integers(1, 64))
def test_what_becomes_wide_is_frozen_wherever_it_could_be(
    tenant: str, counter: str, shards: int, token_shards: int
) -> None:
    any_setting = sharding(shards, token_shards)
    possible = any_setting.possible_shards(tenant, counter)
    assert set(any_setting.all_shards(tenant, counter)) <= set(possible)
