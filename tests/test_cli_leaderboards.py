"""The commands for leaderboards, over a service that runs: what they print and say."""

import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import uuid4

import grpc
import pytest
from click.testing import CliRunner, Result

from tallyboard.v1 import leaderboards_pb2, leaderboards_pb2_grpc
from tallyboard_server.cli import main
from tallyboard_server.contract_words import word_of
from tests.service import RunningService


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service of this module."""
    with RunningService(workers=1) as running:
        yield running


class Caller:
    """Runs commands of leaderboards against one service as one tenant."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.tenant = str(uuid4())

    def __call__(self, *arguments: str, answer: str | None = None) -> Result:
        """Runs a command; `answer` is what is typed. An exception that gets out fails the test."""
        ours = {name: None for name in os.environ if name.startswith("TALLYBOARD_")}
        target = {"TALLYBOARD_SERVER": self.target, "TALLYBOARD_TENANT": self.tenant}
        runner = CliRunner(env={**ours, **target})
        return runner.invoke(main, ["leaderboard", *arguments], answer, catch_exceptions=False)


@pytest.fixture
def call(service: RunningService) -> Caller:
    """Runs commands as a tenant of the test's own."""
    return Caller(service.target)


def create_points(call: Caller, *options: str, scores: dict[str, float] | None = None) -> None:
    """Defines the leaderboard `points` and submits scores."""
    assert call("create", "points", *options).exit_code == 0
    for member, score in (scores or {}).items():
        assert call("submit", "points", member, str(score)).exit_code == 0


def fields_of(result: Result) -> list[list[str]]:
    """The fields of the lines of a list that has been printed."""
    assert result.exit_code == 0, result.stderr
    return [line.split("\t") for line in result.stdout.split("\n")[:-1]]


def test_create_prints_the_defaults(call: Caller) -> None:
    assert call("create", "points").stdout == (
        "leaderboard: points\n"
        "order: descending, policy: best, ties: earliest\n"
        "windows: all-time, time zone: UTC\n"
        "max entries: no limit, segments: 1\n"
    )


def test_create_takes_every_option(call: Caller) -> None:
    options = "--ascending --policy latest --ties member-id --window weekly --window hourly"
    limits = "--time-zone Europe/Berlin --max-entries 9 --segments 2"
    assert call("create", "laps", *options.split(), *limits.split()).stdout == (
        "leaderboard: laps\n"
        "order: ascending, policy: latest, ties: member-id\n"
        "windows: weekly,hourly, time zone: Europe/Berlin\n"
        "max entries: 9, segments: 2\n"
    )


def test_create_says_that_the_id_is_taken(call: Caller) -> None:
    create_points(call)
    again = call("create", "points")
    assert (again.exit_code, again.stdout) == (1, "")
    assert re.fullmatch(r"Error: .+ \(ALREADY_EXISTS\)\.\n", again.stderr)


def test_create_says_what_is_wrong(call: Caller) -> None:
    refused = call("create", "points", "--time-zone", "Moon/Base")
    assert refused.stderr.startswith("Error: leaderboard.time_zone: must be")
    assert refused.exit_code == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--window", "season"),
        ("--window", "daily,weekly"),
        ("--policy", "unspecified"),
        ("--ties", "2"),
        ("--max-entries", str(2**63)),
        ("--segments", "65"),
    ],
)
def test_create_takes_no_other_values(call: Caller, options: tuple[str, str]) -> None:
    refused = call("create", "points", *options)
    assert refused.exit_code == 2
    assert f"Invalid value for '{options[0]}'" in refused.stderr


def test_submit_prints_a_line_a_window(call: Caller) -> None:
    create_points(call, "--window", "monthly", "--window", "all-time", scores={"bob": 7})
    first = fields_of(call("submit", "points", "ann", "5"))
    month = first[0][0]
    assert re.fullmatch(r"\d{4}-\d\d", month)
    assert first == [[month, "5", "-", "2"], ["all", "5", "-", "2"]]
    second = fields_of(call("submit", "points", "ann", "7.5"))
    assert second == [[month, "7.5", "5", "1"], ["all", "7.5", "5", "1"]]


def test_submit_of_a_worse_score_prints_the_one_that_stays(call: Caller) -> None:
    create_points(call, scores={"ann": 5})
    assert fields_of(call("submit", "points", "ann", "3")) == [["all", "5", "5", "1"]]


def test_submit_below_the_limit_prints_no_score(call: Caller) -> None:
    create_points(call, "--max-entries", "1", scores={"bob": 7})
    assert fields_of(call("submit", "points", "ann", "5")) == [["all", "-", "-", "-"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ("points", "ann", "-2.5"),
        ("--metadata", "x", "points", "ann", "-25e-1"),
        ("points", "ann", "-2.5", "--metadata", "x"),
        ("--metadata", "x", "--", "points", "ann", "-2.5"),
    ],
)
def test_submit_takes_negative_scores(call: Caller, arguments: tuple[str, ...]) -> None:
    create_points(call)
    assert fields_of(call("submit", *arguments)) == [["all", "-2.5", "-", "1"]]


def test_submit_takes_a_member_with_a_dash_after_two(call: Caller) -> None:
    create_points(call)
    assert call("submit", "--", "points", "-ann", "-2").exit_code == 0
    assert fields_of(call("top", "points", "--exact")) == [["1", "-2", "-ann"]]


@pytest.mark.parametrize(
    "arguments", [("points", "--dry", "5"), ("--dry", "ann", "5"), ("points", "-1", "5")]
)
def test_submit_takes_no_unknown_option_for_a_name(
    call: Caller, arguments: tuple[str, ...]
) -> None:
    create_points(call)
    refused = call("submit", *arguments)
    assert (refused.exit_code, "No such option" in refused.stderr) == (2, True)
    assert fields_of(call("windows", "points")) == []


@pytest.mark.parametrize("score", ["high", "--", "0x10", "1,5", "\x1b[31m"])
def test_submit_takes_nothing_but_numbers(call: Caller, score: str) -> None:
    create_points(call)
    refused = call("submit", "points", "ann", score)
    assert (refused.exit_code, refused.stdout, "\x1b" in refused.stderr) == (2, "", False)


@pytest.mark.parametrize("score", ["nan", "inf", "-inf"])
def test_submit_of_no_finite_score_is_one_sentence(call: Caller, score: str) -> None:
    create_points(call)
    refused = call("submit", "points", "ann", score)
    assert refused.stderr.startswith("Error: submission.score: must ")
    assert refused.stderr.count("\n") == 1


def test_submit_says_when_nothing_was_changed(call: Caller) -> None:
    create_points(call, "--policy", "sum")
    repeated = ("submit", "points", "ann", "5", "--request-id", str(uuid4()))
    assert call(*repeated).stderr == ""
    again = call(*repeated)
    assert again.stderr == "This request id was seen before; nothing was changed.\n"
    assert fields_of(again) == [["all", "5", "-", "1"]]


def test_submit_makes_up_a_request_id_each_time(call: Caller) -> None:
    create_points(call, "--policy", "sum", scores={"ann": 5})
    assert fields_of(call("submit", "points", "ann", "5")) == [["all", "10", "5", "1"]]


@pytest.mark.parametrize("text", ["lap 3 \N{CHEQUERED FLAG}", "\udcff\x1b"])
def test_submit_sends_metadata_as_it_is(call: Caller, text: str) -> None:
    create_points(call)
    assert call("submit", "points", "ann", "5", "--metadata", text).exit_code == 0
    assert entry_of_ann(call).metadata == os.fsencode(text)


def entry_of_ann(call: Caller) -> leaderboards_pb2.Entry:
    """Ann's entry in `points`."""
    request = leaderboards_pb2.GetEntryRequest(leaderboard_id="points", member="ann")
    with grpc.insecure_channel(call.target) as channel:
        stub = leaderboards_pb2_grpc.LeaderboardServiceStub(channel)
        metadata = (("x-tallyboard-tenant", call.tenant),)
        return stub.GetEntry(request, metadata=metadata, timeout=10).entry


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        ("0", "0"),
        ("-0.0", "0"),
        ("12.0", "12"),
        ("9007199254740991", "9007199254740991"),
        ("1e22", "10000000000000000000000"),
        ("0.1", "0.1"),
        ("-1e-9", "-1e-09"),
    ],
)
def test_scores_that_are_whole_are_shown_as_integers(call: Caller, score: str, shown: str) -> None:
    create_points(call)
    assert fields_of(call("submit", "points", "ann", score)) == [["all", shown, "-", "1"]]


def test_top_prints_the_ranking(call: Caller) -> None:
    create_points(call, scores={"ann": 5, "bob": 7.5, "cyd": -1})
    assert call("top", "points", "--exact").stdout == "1\t7.5\tbob\n2\t5\tann\n3\t-1\tcyd\n"


def test_top_can_be_exact(call: Caller) -> None:
    create_points(call)
    assert call("top", "points").stdout == ""  # which the service then remembers
    call("submit", "points", "ann", "5")
    assert fields_of(call("top", "points", "--exact")) == [["1", "5", "ann"]]


def test_top_can_be_reversed_and_ends_at_its_limit(call: Caller) -> None:
    create_points(call, scores={"ann": 5, "bob": 7.5, "cyd": -1})
    shown = fields_of(call("top", "points", "--reverse", "--limit", "2", "--exact"))
    assert shown == [["3", "-1", "cyd"], ["2", "5", "ann"]]


@pytest.mark.parametrize(
    ("method", "ranks"),
    [("ordinal", "1234"), ("competition", "1224"), ("dense", "1223")],
)
def test_top_counts_ranks_as_told(call: Caller, method: str, ranks: str) -> None:
    create_points(call, scores={"ann": 9, "bob": 5, "cyd": 5, "dan": 1})
    shown = fields_of(call("top", "points", "--rank-method", method, "--exact"))
    assert "".join(rank for rank, _, _ in shown) == ranks


def test_top_is_of_the_window_that_is_named(call: Caller) -> None:
    create_points(call, "--window", "all-time", "--window", "daily", scores={"ann": 5})
    shown = call("top", "points", "--window", "current:daily", "--exact")
    assert fields_of(shown) == [["1", "5", "ann"]]


def test_top_needs_a_window_where_there_are_several(call: Caller) -> None:
    create_points(call, "--window", "all-time", "--window", "daily")
    refused = call("top", "points")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: window: ")


def test_top_goes_through_all_pages(call: Caller) -> None:
    create_points(call)
    members = [f"member:{i:04}" for i in range(1, 2502)]
    submit_many(call, {member: -i for i, member in enumerate(members, 1)})
    shown = fields_of(call("top", "points", "--limit", "2500", "--exact"))
    assert shown == [[str(i), str(-i), member] for i, member in enumerate(members[:2500], 1)]


def submit_many(call: Caller, scores: dict[str, float]) -> None:
    """Submits scores to `points` in one call."""
    submissions = [
        leaderboards_pb2.Submission(leaderboard_id="points", member=member, score=score)
        for member, score in scores.items()
    ]
    request = leaderboards_pb2.BatchSubmitScoresRequest(submissions=submissions)
    with grpc.insecure_channel(call.target) as channel:
        stub = leaderboards_pb2_grpc.LeaderboardServiceStub(channel)
        metadata = (("x-tallyboard-tenant", call.tenant),)
        assert not stub.BatchSubmitScores(request, metadata=metadata, timeout=30).failures


def test_rank_prints_the_place_of_a_member(call: Caller) -> None:
    create_points(call, scores={"ann": 5, "bob": 7, "cyd": 1, "dan": 0.5})
    assert call("rank", "points", "ann").stdout == "2 of 4, score 5, percentile 75\n"


def test_rank_of_a_window(call: Caller) -> None:
    create_points(call, "--window", "all-time", "--window", "weekly", scores={"ann": 5})
    shown = call("rank", "points", "ann", "--window", "current:weekly")
    assert shown.stdout == "1 of 1, score 5, percentile 100\n"


def test_around_prints_the_neighbours(call: Caller) -> None:
    create_points(call, scores={"ann": 5, "bob": 4, "cyd": 3, "dan": 2, "eve": 1})
    shown = fields_of(call("around", "points", "cyd", "--neighbors", "1"))
    assert shown == [["2", "4", "bob"], ["3", "3", "cyd"], ["4", "2", "dan"]]


def test_stats_print_how_scores_are_spread(call: Caller) -> None:
    create_points(call, scores={"ann": 4, "bob": 3, "cyd": 2, "dan": 1})
    assert call("stats", "points").stdout == (
        "window: all, entries: 4\n"
        "best: 4, worst: 1, mean: 2.5\n"
        "score at percentile 99: 4, 90: 4, 50: 2\n"
    )


def test_stats_of_no_entries(call: Caller) -> None:
    create_points(call)
    assert call("stats", "points").stdout == "window: all, entries: 0\n"


def test_windows_print_state_and_limits(call: Caller) -> None:
    create_points(call, "--window", "monthly", "--window", "all-time", scores={"ann": 4})
    of_all, of_month = fields_of(call("windows", "points"))
    starts_at = datetime.strptime(of_month[3], "%Y-%m-%dT%H:%M:%SZ")
    assert of_all == ["all", "open", "1", "-", "-"]
    assert of_month[:3] == [f"{starts_at:%Y-%m}", "open", "1"]
    assert of_month[4] == f"{starts_at + timedelta(days=31):%Y-%m}-01T00:00:00Z"


def test_list_prints_definitions_by_id(call: Caller) -> None:
    call("create", "points:b", "--ascending", "--window", "daily", "--window", "monthly")
    call("create", "points:a", "--policy", "sum")
    call("create", "laps")
    assert fields_of(call("list", "--prefix", "points:")) == [
        ["points:a", "descending", "sum", "all-time"],
        ["points:b", "ascending", "best", "daily,monthly"],
    ]
    assert fields_of(call("list", "--limit", "1")) == [["laps", "descending", "best", "all-time"]]


def test_list_of_another_tenant_is_empty(call: Caller) -> None:
    create_points(call)
    assert call("list", "--tenant", "acme").stdout == ""


def test_delete_asks_and_does_nothing_when_told_no(call: Caller) -> None:
    create_points(call, scores={"ann": 4})
    refused = call("delete", "points", answer="n\n")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Delete the leaderboard 'points' with all its entries? [y/N]" in refused.stderr
    assert len(fields_of(call("list"))) == 1


def test_delete_without_an_answer_does_nothing(call: Caller) -> None:
    create_points(call, scores={"ann": 4})
    assert call("delete", "points", answer="").exit_code == 1
    assert len(fields_of(call("list"))) == 1


@pytest.mark.parametrize(("options", "answer"), [((), "y\n"), (("--yes",), None)])
def test_delete_says_how_much_went(
    call: Caller, options: tuple[str, ...], answer: str | None
) -> None:
    create_points(call, scores={"ann": 4, "bob": 1})
    assert call("delete", "points", *options, answer=answer).stdout == "deleted entries: 2\n"
    assert call("list").stdout == ""


def test_erase_member_asks_and_does_nothing_when_told_no(call: Caller) -> None:
    create_points(call, scores={"ann": 4})
    refused = call("erase-member", "ann", answer="n\n")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Erase the member 'ann' from all leaderboards? [y/N]" in refused.stderr
    assert call("rank", "points", "ann").exit_code == 0


@pytest.mark.parametrize(("options", "answer"), [((), "y\n"), (("--yes",), None)])
def test_erase_member_says_how_much_went(
    call: Caller, options: tuple[str, ...], answer: str | None
) -> None:
    create_points(call, scores={"ann": 4, "bob": 1})
    call("create", "laps")
    call("submit", "laps", "ann", "3")
    assert call("erase-member", "ann", *options, answer=answer).stdout == (
        "leaderboards: 2, deleted entries: 2, deleted from archives and snapshots: 0\n"
    )
    assert fields_of(call("top", "points", "--exact")) == [["1", "1", "bob"]]


def test_snapshots_print_the_days(call: Caller) -> None:
    create_points(call, scores={"ann": 4, "bob": 1.5})
    take_snapshots(call)
    ((day, *rest),) = fields_of(call("snapshots", "points"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert rest == ["all", "2"]


def test_snapshots_print_the_place_of_a_member(call: Caller) -> None:
    create_points(call, scores={"ann": 4, "bob": 1.5})
    take_snapshots(call)
    ((_, *of_bob),) = fields_of(call("snapshots", "points", "--member", "bob"))
    ((_, *of_eve),) = fields_of(call("snapshots", "points", "--member", "eve"))
    assert (of_bob, of_eve) == (["all", "2", "2", "1.5"], ["all", "2", "-", "-"])


def test_snapshots_of_a_window(call: Caller) -> None:
    create_points(call, "--window", "all-time", "--window", "daily", scores={"ann": 4})
    take_snapshots(call)
    both = fields_of(call("snapshots", "points"))
    ((_, window, _),) = fields_of(call("snapshots", "points", "--window", "all"))
    assert (len(both), window) == (2, "all")


def take_snapshots(call: Caller) -> None:
    """Takes the snapshots of the tenant."""
    target = ("--server", call.target, "--tenant", call.tenant)
    assert CliRunner().invoke(main, ["snapshot", *target]).exit_code == 0


OF_A_BOARD = [
    ("submit", "nothing", "ann", "1"),
    ("top", "nothing"),
    ("rank", "nothing", "ann"),
    ("around", "nothing", "ann"),
    ("stats", "nothing"),
    ("windows", "nothing"),
    ("snapshots", "nothing"),
    ("delete", "nothing", "--yes"),
]
ALL = [*OF_A_BOARD, ("create", "points"), ("list",), ("erase-member", "ann", "--yes")]


@pytest.mark.parametrize("command", OF_A_BOARD, ids=lambda command: command[0])
def test_leaderboard_that_is_not_there_is_one_sentence(
    call: Caller, command: tuple[str, ...]
) -> None:
    missing = call(*command)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert re.fullmatch(r"Error: .+ \(NOT_FOUND\)\.\n", missing.stderr)


@pytest.mark.parametrize("command", ALL, ids=lambda command: command[0])
def test_no_service_is_one_sentence(command: tuple[str, ...]) -> None:
    missing = Caller("127.0.0.1:1")(*command)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == "Error: No service answers at 127.0.0.1:1.\n"


@pytest.mark.parametrize("command", ["rank", "around"])
def test_member_without_an_entry_is_one_sentence(call: Caller, command: str) -> None:
    create_points(call)
    missing = call(command, "points", "ann")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert re.fullmatch(r"Error: .+ \(NOT_FOUND\)\.\n", missing.stderr)


@pytest.mark.parametrize("window", ["yesterday", "2026-13", "current:daily", "\x1b[31m", "\n"])
def test_wrong_window_is_one_sentence(call: Caller, window: str) -> None:
    create_points(call)
    refused = call("top", "points", "--window", window)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert re.fullmatch(r"Error: window: [ -~]+ \(INVALID_ARGUMENT\)\.\n", refused.stderr)


@pytest.mark.parametrize(
    "name",
    [
        "-ann",
        "$(ls) `ls` %s {0}",
        "a/../b",
        "\N{RIGHT-TO-LEFT OVERRIDE}ann",
        "\u2028",
        "[red]",
        "é" * 128,
    ],
    ids=ascii,
)
def test_hostile_names_are_only_names(call: Caller, name: str) -> None:
    assert call("create", "--", name).exit_code == 0
    assert fields_of(call("submit", "--", name, name, "-1")) == [["all", "-1", "-", "1"]]
    assert fields_of(call("top", "--exact", "--", name)) == [["1", "-1", name]]
    assert call("rank", "--", name, name).stdout == "1 of 1, score -1, percentile 100\n"
    assert [board[0] for board in fields_of(call("list"))] == [name]
    assert call("erase-member", "--yes", "--", name).stdout.startswith("leaderboards: 1, ")
    assert call("delete", "--yes", "--", name).exit_code == 0


@pytest.mark.parametrize("name", ["", "a\tb", "a\nb", "\x1b[31m", "\x9b", "é" * 129], ids=ascii)
def test_names_that_are_none_are_one_sentence(call: Caller, name: str) -> None:
    create_points(call)
    for command in (("create", name), ("submit", "points", name, "1"), ("rank", "points", name)):
        refused = call(*command)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert re.fullmatch(r"Error: [\w.]+: must [ -~]+ \(INVALID_ARGUMENT\)\.\n", refused.stderr)


def test_names_that_are_no_text_are_one_sentence(call: Caller) -> None:
    for command in (
        ("create", "\udcff"),
        ("rank", "points", "\udcff"),
        ("list", "--prefix", "\udcff"),
    ):
        refused = call(*command)
        assert (refused.exit_code, refused.stderr) == (1, "Error: What is sent must be UTF-8.\n")


def test_questions_show_no_control_characters(call: Caller) -> None:
    asked = call("delete", "\x1b[31m\udcff", answer="n\n")
    assert "leaderboard '\\x1b[31m\\udcff' with" in asked.stderr


def test_answer_that_the_terminal_cannot_show_is_one_sentence(call: Caller) -> None:
    call("create", "price:€")
    ours = {"TALLYBOARD_SERVER": call.target, "TALLYBOARD_TENANT": call.tenant}
    refused = CliRunner(env=ours, charset="latin-1").invoke(main, ["leaderboard", "list"])
    assert refused.stderr == "Error: The answer can't be written as latin-1.\n"


@pytest.mark.parametrize("request_id", ["1", "\x1b[31m"])
def test_wrong_request_id_is_one_sentence(call: Caller, request_id: str) -> None:
    create_points(call)
    refused = call("submit", "points", "ann", "1", "--request-id", request_id)
    assert refused.exit_code == 1
    assert re.fullmatch(r"Error: request_id: must [ -~]+ \(INVALID_ARGUMENT\)\.\n", refused.stderr)


def test_values_that_only_a_newer_service_knows_are_numbers() -> None:
    assert word_of(leaderboards_pb2.WindowState, 99) == "99"
