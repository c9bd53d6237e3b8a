"""All clients of one schedule, and what they know together."""

from tests.faults.ledger import Load
from tests.faults.score_ledger import ScoreLoad
from tests.faults.soak.client import ClientProcess
from tests.faults.soak.schedule import Schedule
from tests.faults.soak.season import Season
from tests.faults.soak.stage import Stage


class Writers:
    """Clients of counters, of boards, one of the published library, and of seasons that end.

    Args:
        stage: whose service they call.
        schedule: says which clients there are.
        prefix: of all names.

    Attributes:
        counters, scores, client, seasons: the clients.
    """

    def __init__(self, stage: Stage, schedule: Schedule, prefix: str) -> None:
        self._target = stage.target
        self._prefix = prefix
        self.counters = Load(*stage.targets, prefix=prefix, kinds=schedule.counters, each=1)
        self.scores = ScoreLoad(*stage.targets, prefix=prefix, kinds=schedule.scores, each=1)
        self.client: ClientProcess | None = None
        if schedule.has_client:
            self.client = ClientProcess(self._target, stage.folder, prefix, schedule.seed)
        self.seasons: list[Season] = []
        self._of_client = 0

    @property
    def acknowledged(self) -> int:
        """How many writes of this process are acknowledged."""
        return self.counters.acknowledged + self.scores.acknowledged

    @property
    def updates(self) -> int:
        """How many updates were acknowledged; after `finish` those of the client process too."""
        seasons = sum(season.updates for season in self.seasons)
        return self.counters.updates + self.scores.updates + seasons + self._of_client

    @property
    def retries(self) -> int:
        """How often something was sent once more."""
        return self.counters.ledger.retries + self.scores.ledger.retries

    @property
    def problems(self) -> list[str]:
        """What must not happen and did."""
        found = [*self.counters.ledger.problems, *self.scores.ledger.problems]
        return found + [season.problem for season in self.seasons if season.problem]

    def start(self) -> None:
        """All but the seasons begin to write."""
        self.counters.__enter__()
        self.scores.__enter__()
        if self.client is not None:
            self.client.start()

    def begin_season(self, seconds: float) -> None:
        """A new board whose season ends so many seconds from now."""
        board = f"{self._prefix}season{len(self.seasons)}"
        self.seasons.append(Season(self._target, board, seconds))

    def stop(self) -> None:
        """Nothing new; does not wait for what is under way."""
        self.counters.stop()
        self.scores.stop()
        if self.client is not None:
            self.client.stop()

    def finish(self) -> None:
        """Nothing new, and wait until the outcome of everything is known."""
        self.stop()
        self.counters.finish()
        self.scores.finish()
        for season in self.seasons:
            season.finish()
        if self.client is not None:
            self._of_client = self.client.finish(self.counters.ledger)

    def abandon(self) -> None:
        """End the client process, whatever state it is in."""
        self.stop()
        if self.client is not None:
            self.client.kill()
