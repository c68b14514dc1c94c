"""Whole runs with a token: the real runner and real plugins over a Pod that lets them have what is theirs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast import Account, CVUStoredDefinition, DeniedError, FencedError, Item, NotFoundError, RetryLater, Secret
from holdfast.auth import Permitted, Token, rights_of
from holdfast.engine import Runner, begin_run, get_state
from holdfast.errors import ConflictError
from holdfast.items import PersistentState, PluginRun
from holdfast.plugins import PluginBase, StatefulPlugin
from holdfast.plugins.source import source_of
from holdfast.pod import Pod
from holdfast.runs import Fence, Lease, Outcome, Status
from holdfast.store import Batch, ClaimLease, DeclareTypes, EndLease, Query, Result
from holdfast.testing import MemoryStore
from tests.components.histories import METADATA, forty_commits


class Kept(MemoryStore):
    """A Pod that outlives the clients that close it, and notes what was written without a fence."""

    def __init__(self) -> None:
        super().__init__()
        self.unfenced: list[Batch] = []

    def apply(self, batch: Batch) -> tuple[Result, ...]:
        """Note it, and apply it."""
        if batch.fence is None:
            self.unfenced.append(batch)
        return super().apply(batch)

    def close(self) -> None:
        """Stay."""


@pytest.fixture
def store() -> Kept:
    """A Pod in memory."""
    return Kept()


def claimed(store: Kept, run: PluginRun, state: PersistentState, holder: str = "server-1") -> Token:
    """Claim a plugin state for a run, as a server does for its owner, and return the token for it."""
    lease = store.apply(Batch((ClaimLease(str(state.id), str(run.id), holder, 60_000),)))[0]
    assert isinstance(lease, Lease)
    return Token(
        owner="0a" * 32,
        state=lease.state,
        run=lease.run,
        epoch=lease.epoch,
        holder=lease.holder,
        rights=rights_of(store.find_items([str(run.id)])[str(run.id)].properties),
        expires_ms=2**53,
    )


def drive(
    store: Kept, folder: Path, cls: type[PluginBase], config: Any = None, *, state: str = "default", **properties: Any
) -> Outcome:
    """Begin a run, claim it, and drive it with its token alone; whatever it writes is fenced."""
    client = Pod(store)
    plugin_state = get_state(client, f"m:{cls.__name__}", state)
    account = properties.pop("account", None)
    run = begin_run(client, plugin_state, {"pluginModule": "m", "pluginName": cls.__name__, **properties}, account)
    token = claimed(store, run, plugin_state)
    seen: list[PluginRun] = []
    by_token = Pod(Permitted(store, token))
    found = by_token.get(str(run.id))
    assert isinstance(found, PluginRun)
    seen.append(found)
    store.unfenced.clear()
    runner = Runner(
        lambda: Permitted(store, token), locks=folder / "locks", snapshots=folder / "snapshots", holder=token.holder
    )
    outcome = runner.drive(cls, seen[0], seen[0].pluginState[0], config or {})
    assert store.unfenced == []
    assert store.find_items([token.run])[token.run].properties["status"] == str(outcome.status)
    lease = store.find_lease(token.state)
    assert lease is not None
    assert (lease.epoch, lease.holder) == (token.epoch, "")
    return outcome


def test_a_plugin_imports_the_history_of_a_repository_with_its_token_alone(store: Kept, tmp_path: Path) -> None:
    """The example, unchanged and without any grant; what it brought is its own in the next run, and nobody else's."""
    repository = forty_commits(tmp_path / "repository")
    cls = source_of(str(METADATA)).load()
    config = {"repository": str(repository.path), "batch_size": 7}

    assert drive(store, tmp_path, cls, config).status is Status.DONE
    repository.commit("New", {"new.txt": ""})
    assert drive(store, tmp_path, cls, config).status is Status.DONE

    counts = Counter(each.item.type for each in store.search(Query()))
    assert counts == {"Commit": 41, "Author": 3, "ChangedFile": 12, "PluginRun": 2, "PersistentState": 1}
    [state] = store.search(Query(type="PersistentState"))
    assert json.loads(str(state.item.properties["ownTypes"])) == ["Author", "ChangedFile", "Commit"]

    other = drive(store, tmp_path, cls, config, state="work")
    assert (other.status, other.exit_code) == (Status.ERROR, 3)
    assert "may not declare type 'Commit'" in str(other.error) or "may not declare type 'Author'" in str(other.error)
    types = '["Commit", "Author", "ChangedFile"]'
    assert drive(store, tmp_path, cls, config, state="work", reads=types, writes=types).status is Status.DONE
    assert Counter(each.item.type for each in store.search(Query()))["Commit"] == 82


class Weights:
    """What a snapshot holds."""

    def __init__(self) -> None:
        self.value = 0

    def get_state(self) -> Any:
        """Return it."""
        return {"value": self.value}

    def set_state(self, tree: Any) -> None:
        """Take it."""
        self.value = tree["value"]


class Login(Item):
    """A type with a secret of the plugin's own."""

    name: str | None = None
    password: Secret[str] | None = None


class Learner(StatefulPlugin):
    """Uses all that a plugin has: snapshots, variables, once, progress, its run, its account and its view."""

    schema_classes = (Login,)

    def setup(self) -> None:
        """Have something saved."""
        self.weights = Weights()
        self.snapshots.register("weights", self.weights)

    def run(self) -> None:
        """Go on from where it was, and say that it is done before its last snapshot is taken."""
        self.weights.value += 1
        self.state.runs = self.state.get("runs", 0) + 1
        assert self.weights.value == self.state.runs
        for _ in self.track([1, 2]):
            self.once("greet", lambda: "hello")
        login = self.client.create(Login("ada", "1234"))
        assert self.client.get(str(login.id)) == Login("ada", "1234", id=login.id)
        account = self.get_account()
        assert account is not None
        assert account.accessToken == "of my own"
        assert not self._set_run_view(self.client, "not mine")
        with pytest.raises(NotFoundError):
            self.client.get("absent")
        self.get_run().error = "seen"
        self.completed()


def test_a_plugin_has_its_snapshots_variables_account_and_status_with_its_token(store: Kept, tmp_path: Path) -> None:
    """In two runs, each with an account; the last snapshot of each is taken when it has said that it is done."""
    Pod(store).create(CVUStoredDefinition("not mine"))
    for number in (1, 2):
        outcome = drive(store, tmp_path, Learner, account={"accessToken": "of my own"})
        assert (outcome.status, outcome.error) == (Status.DONE, None)
        [state] = store.search(Query(type="PersistentState"))
        assert store.list_variables(state.item.id) == {"runs": number}
        assert str(store.find_snapshot(state.item.id)) in {path.name for path in (tmp_path / "snapshots").glob("*/*")}
        assert len(json.loads(str(store.list_variables(state.item.id, "holdfast")["snapshots"]))) == number


def test_what_a_plugin_may_not_is_its_error(store: Kept, tmp_path: Path) -> None:
    """The run ends with it; the grant is what mends it."""

    class Reads(StatefulPlugin):
        def run(self) -> None:
            self.state.found = len(self.client.search({"type": "Account"}))
            self.client.create(Account(handle="x"))

    outcome = drive(store, tmp_path, Reads)
    assert (outcome.status, outcome.exit_code) == (Status.ERROR, 3)
    assert str(outcome.error).endswith(
        "may not create items of type 'Account': the type is neither its own nor in its 'writes'"
    )
    assert drive(store, tmp_path, Reads, writes='["Account"]', reads="[]").status is Status.DONE


def test_a_run_says_with_its_token_when_it_is_to_be_launched_again(store: Kept, tmp_path: Path) -> None:
    """What a launched run needs is not there, and it asks to be tried later."""

    class Waits(StatefulPlugin):
        def run(self) -> None:
            raise RetryLater("the service is away", after=90)

    before_ms = store.now_ms()
    assert drive(store, tmp_path, Waits).exit_code == 75
    [run] = store.search(Query(type="PluginRun"))
    assert before_ms + 90_000 <= int(run.item.properties["retryAt"]) <= store.now_ms() + 90_000


def test_a_run_with_a_token_stops_when_its_plugin_state_is_taken(store: Kept, tmp_path: Path) -> None:
    """Its next write is refused, and it is left alone."""
    client = Pod(store)

    class Loses(StatefulPlugin):
        def run(self) -> None:
            store.apply(Batch((EndLease(str(self.pluginState and self.pluginState.id)),)))
            with pytest.raises(FencedError):
                self.client.search({"type": "PluginRun"})
            self.state.late = 1

    state = get_state(client, "m:Loses")
    run = begin_run(client, state, {"pluginModule": "m", "pluginName": "Loses"})
    token = claimed(store, run, state)
    runner = Runner(lambda: Permitted(store, token), locks=tmp_path / "locks", holder=token.holder)
    outcome = runner.drive(Loses, run, state, {})
    assert (outcome.status, outcome.exit_code) == (None, 5)
    assert store.list_variables(str(state.id)) == {}


def test_a_run_whose_claim_is_over_is_not_begun(store: Kept, tmp_path: Path) -> None:
    """A process that starts too late writes nothing, and claims nothing anew."""
    client = Pod(store)
    state = get_state(client, "m:Learner")
    run = begin_run(client, state, {"pluginModule": "m", "pluginName": "Learner"})
    token = claimed(store, run, state)
    later = claimed(store, run, state, "server-1")
    assert later.fence == token.fence == Fence(state=str(state.id), epoch=1, holder="server-1")
    store.apply(Batch((EndLease(token.state),)))
    runner = Runner(lambda: Permitted(store, token), locks=tmp_path / "locks", holder=token.holder)
    with pytest.raises(FencedError):
        runner.drive(Learner, run, state, {})
    lease = store.find_lease(token.state)
    assert lease is not None
    assert (lease.epoch, lease.holder) == (2, "")


def test_a_holder_that_is_given_claims_again_what_it_has_and_nothing_else(store: Kept, tmp_path: Path) -> None:
    """Without a token too: the claim is repeated, and another holder's is not taken."""
    client = Pod(store)
    state = get_state(client, "m:Learner")
    run = begin_run(client, state, {"pluginModule": "m", "pluginName": "Learner"}, {"accessToken": "of my own"})
    claimed(store, run, state)
    for holder in ("server-2", "server-1"):
        runner = Runner(lambda: store, locks=tmp_path / "locks", snapshots=tmp_path / "snapshots", holder=holder)
        if holder == "server-2":
            with pytest.raises(ConflictError, match="is held by run"):
                runner.drive(Learner, run, state, {})
        else:
            assert runner.drive(Learner, run, state, {}).status is Status.DONE


def test_a_plugin_that_was_given_no_rights_sees_nobody_elses_types(store: Kept, tmp_path: Path) -> None:
    """What others declared is not in its schema; of the built-in types all are."""
    store.apply(Batch((DeclareTypes(()),)))

    class Other(Item):
        name: str | None = None

    Pod(store).add_to_schema(Other)

    class Looks(PluginBase):
        def run(self) -> None:
            with pytest.raises(DeniedError):
                self.client.add_to_schema(Other)
            self.client.add_to_schema(Account, PluginRun)

    assert drive(store, tmp_path, Looks).status is Status.DONE


def test_what_a_plugin_brought_when_it_was_run_by_hand_is_its_own_when_it_is_launched(
    store: Kept, tmp_path: Path
) -> None:
    """But not what somebody else had brought before."""

    class Page(Item):
        text: str | None = None

    class Margin(Item):
        text: str | None = None

    class Writes(StatefulPlugin):
        schema_classes = (Page, Margin)

        def run(self) -> None:
            self.client.create((Page if self.state.n is None else Margin)(text="by hand"))
            self.state.n = 1

    Pod(store).add_to_schema(Margin)
    client = Pod(store)
    state = get_state(client, "m:Writes")
    by_hand = begin_run(client, state, {"pluginModule": "m", "pluginName": "Writes"})
    runner = Runner(lambda: store, locks=tmp_path / "locks")
    assert runner.drive(Writes, by_hand, state, {}).status is Status.DONE
    assert store.find_items([str(state.id)])[str(state.id)].properties["ownTypes"] == '["Page"]'

    class Adds(StatefulPlugin):
        schema_classes = (Page,)

        def run(self) -> None:
            self.client.create(Page(text="with a token"))

    Adds.__name__ = "Writes"
    assert drive(store, tmp_path, Adds).status is Status.DONE
    assert [each.item.properties["text"] for each in store.search(Query(type="Page"))] == ["by hand", "with a token"]
    assert "may not declare type 'Margin'" in (drive(store, tmp_path, Writes).error or "")
