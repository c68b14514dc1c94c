"""The example GitHistory imports what git says, each commit once, whatever the repository is like."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from holdfast.context import PodClient
from holdfast.runs import Status
from tests.components.histories import ADA, BOB, EVE, FORTY, Repository, content, forty_commits, import_history, totals

DEMO = Path(__file__).parents[2] / "examples" / "git_history_demo.py"


def read(home: Path, type_: str = "Commit") -> list[Any]:
    """Return the items of a type, as whoever knows nothing of the example's classes reads them."""
    with PodClient(home=home) as client:
        return client.search({"type": type_, "[[edges]]": {}})


def paths(home: Path) -> dict[str, list[str]]:
    """Return which paths each commit changed, by its message."""
    return {each.message: sorted(file.path for file in each.changed) for each in read(home)}


def fail_after(batches: int) -> Any:
    """Return what ends a run after so many batches, as an error of the plugin's own would."""

    def on_progress(done: int, _: int | None) -> None:
        if done == batches:
            raise OSError("the cable came out")

    return on_progress


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with 40 commits, to be copied."""
    return forty_commits(tmp_path_factory.mktemp("forty") / "repository")


@pytest.fixture
def forty(made: Repository, tmp_path: Path) -> Repository:
    """Return a repository with 40 commits, which this test may change."""
    shutil.copytree(made.path, tmp_path / "forty")
    return Repository(tmp_path / "forty")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return an empty repository."""
    return Repository(tmp_path / "repository")


@pytest.mark.parametrize("batch_size", [1, 7, 1_000])
def test_it_imports_every_commit_author_and_changed_file_once(forty: Repository, home: Path, batch_size: int) -> None:
    """Forty commits with merges, three authors, eleven files, however large a batch is."""
    assert import_history(home, forty.path, batch_size=batch_size).status is Status.DONE
    assert totals(home) == FORTY


def test_a_commit_has_its_message_date_author_parents_and_files(repository: Repository, home: Path) -> None:
    """As its author made it; the dates are in UTC, and lists lead to items."""
    first = repository.commit("One\n\nBecause.\n", {"a.txt": "1", "b.txt": "1"})
    second = repository.commit("Two", {"a.txt": "2"}, author=EVE)

    import_history(home, repository.path)

    one, two = read(home)
    assert (one.sha, one.message) == (first, "One\n\nBecause.")
    assert one.date == datetime(2023, 11, 14, 22, 14, 20, tzinfo=UTC)
    assert [(who.name, who.email) for who in one.author] == [("Ada", "ada@example.org")]
    assert one.parent == []
    assert sorted(file.path for file in one.changed) == ["a.txt", "b.txt"]
    assert (two.sha, [who.name for who in two.author]) == (second, ["Ève"])
    assert [parent.id for parent in two.parent] == [one.id]
    assert [file.path for file in two.changed] == ["a.txt"]


def test_a_second_run_imports_only_what_is_new(forty: Repository, home: Path) -> None:
    """Nothing that was imported is written again, and nothing new means that nothing is written."""
    import_history(home, forty.path)
    dates = {each.sha: each.dateServerModified for each in read(home)}

    assert import_history(home, forty.path).status is Status.DONE
    assert {each.sha: each.dateServerModified for each in read(home)} == dates

    new = forty.commit("New", {"new.txt": ""})
    assert import_history(home, forty.path).status is Status.DONE
    after = {each.sha: each.dateServerModified for each in read(home)}
    assert after.keys() - dates.keys() == {new}
    assert after.items() >= dates.items()
    assert content(home)["variables"] == {"commits": 41, "frontier": new}


@pytest.mark.parametrize("batches", [1, 2, 5, 9])
def test_it_carries_on_also_when_old_branches_were_merged_meanwhile(
    forty: Repository, home: Path, batches: int
) -> None:
    """It stops after some batches of four; then come commits, and a merge of a branch from before all of them."""
    stopped = import_history(home, forty.path, batch_size=4, on_progress=fail_after(batches))
    assert (stopped.status, stopped.error) == (Status.ERROR, "OSError: the cable came out")
    assert totals(home)["commits"] == 4 * batches

    forty.git("checkout", "--quiet", "-b", "old", "HEAD~3")
    forty.commit("Old", {"old.txt": ""})
    forty.git("checkout", "--quiet", "main")
    forty.commit("New", {"new.txt": ""})
    forty.merge("old")

    assert import_history(home, forty.path, batch_size=4).status is Status.DONE
    assert totals(home) == {
        "commits": 43,
        "authors": 3,
        "files": 13,
        "edges": {"author": 43, "parent": 47, "changed": 74},
    }


def test_a_rewritten_history_is_refused_and_nothing_changes(repository: Repository, home: Path) -> None:
    """Whether git still has the old commit or not; with the old head checked out again it goes on."""
    old = repository.commit("One", {"a.txt": "1"})
    import_history(home, repository.path)
    repository.git("commit", "--quiet", "--amend", "--message=Other")

    refused = import_history(home, repository.path)

    assert refused.status is Status.ERROR
    assert refused.error == (
        f"commit {old!r} was imported and HEAD of {str(repository.path)!r} does not lead to it any more: "
        "check out what does, or import the rewritten history into another plugin state"
    )
    other = Repository(repository.path.with_name("other"))
    other.commit("Elsewhere", {})
    assert f"commit {old!r} was imported" in (import_history(home, other.path).error or "")
    assert content(home)["shas"] == [old]
    repository.git("reset", "--quiet", "--hard", old)
    assert import_history(home, repository.path).status is Status.DONE


def test_what_cannot_be_read_is_an_error_that_says_why(tmp_path: Path, home: Path) -> None:
    """A missing folder, one that is no repository, a shallow clone: refused before anything is written."""
    source = Repository(tmp_path / "source")
    source.commit("One", {"a.txt": "1"})
    source.commit("Two", {"a.txt": "2"})
    source.git("clone", "--quiet", "--depth=1", source.path.as_uri(), str(tmp_path / "shallow"))
    (tmp_path / "plain").mkdir()

    missing = import_history(home, tmp_path / "missing")
    plain = import_history(home, tmp_path / "plain")
    shallow = import_history(home, tmp_path / "shallow")

    assert [each.status for each in (missing, plain, shallow)] == [Status.ERROR] * 3
    assert (missing.error or "").startswith(f"git cannot read {str(tmp_path / 'missing')!r}: fatal: cannot change to")
    assert "not a git repository" in (plain.error or "")
    assert shallow.error == f"{str(tmp_path / 'shallow')!r} is a shallow clone: git fetch --unshallow brings the rest"
    assert content(home)["variables"] == {}


def test_a_damaged_repository_is_an_error_and_what_was_read_before_stays(repository: Repository, home: Path) -> None:
    """Whole batches are kept, and none that the damage is in or next to; the run after the repair brings the rest."""
    shas = [repository.commit(f"{number}", {"a.txt": f"{number}"}) for number in range(6)]
    name = repository.git("rev-parse", f"{shas[4]}^{{tree}}")
    tree = repository.path / ".git" / "objects" / name[:2] / name[2:]
    aside = tree.rename(tree.with_suffix(".aside"))

    failed = import_history(home, repository.path, batch_size=2)

    assert failed.status is Status.ERROR
    assert failed.error == f"git cannot read all of {str(repository.path)!r}: git fsck says why"
    assert content(home)["shas"] == shas[:2]
    aside.rename(tree)
    assert import_history(home, repository.path, batch_size=2).status is Status.DONE
    assert content(home)["shas"] == shas


def test_a_repository_without_a_commit_is_done_at_once(repository: Repository, home: Path) -> None:
    """And the next run imports what has come."""
    assert import_history(home, repository.path).status is Status.DONE
    assert content(home)["shas"] == []
    sha = repository.commit("One", {})
    assert import_history(home, repository.path).status is Status.DONE
    assert content(home)["shas"] == [sha]


def test_names_of_files_may_be_anything(repository: Repository, home: Path) -> None:
    """Spaces, line feeds at either end, other scripts; two names that differ only in what is not UTF-8 stay two."""
    names: list[str | bytes] = [" a b ", "\nline\n", 'quoted "tab\t"', "日本/é", b"\xff.txt", b"\xfe.txt"]
    repository.commit("All", dict.fromkeys(names, "1"))
    import_history(home, repository.path)
    assert paths(home) == {"All": sorted([" a b ", "\nline\n", 'quoted "tab\t"', "日本/é", "\ufffd.txt", "\ufffd.txt"])}
    assert content(home)["files"] == 6


def test_merges_renames_deletions_and_submodules_are_what_the_example_says(tmp_path: Path, home: Path) -> None:
    """A merge changes nothing of its own, a rename two paths, a deletion and a submodule one."""
    inner = Repository(tmp_path / "inner")
    inner.commit("Inner", {"x": "1"})
    repository = Repository(tmp_path / "repository")
    repository.commit("Base", {"old.txt": "long enough to be found again\n" * 9})
    repository.git("checkout", "--quiet", "-b", "side")
    repository.commit("Rename", {"old.txt": None, "new.txt": "long enough to be found again\n" * 9})
    repository.commit("Delete", {"new.txt": None})
    repository.git("checkout", "--quiet", "main")
    repository.git("submodule", "--quiet", "add", str(inner.path), "part")
    repository.commit("Submodule", {})
    repository.merge("side")

    assert import_history(home, repository.path).status is Status.DONE

    assert paths(home) == {
        "Base": ["old.txt"],
        "Rename": ["new.txt", "old.txt"],
        "Delete": ["new.txt"],
        "Submodule": [".gitmodules", "part"],
        "Merge side": [],
    }


def test_messages_and_dates_may_be_anything(repository: Repository, home: Path) -> None:
    """None, very long, in another encoding, in none, cut by NUL; and a date that no calendar has."""
    repository.commit("", {})
    repository.commit("x" * 5_000_000, {})
    tree = repository.git("rev-parse", "HEAD^{tree}")
    for date, more, message in (
        (b"1", b"encoding ISO-8859-1\n", b"h\xe9llo"),
        (b"1", b"", b"h\xe9llo"),
        (b"99999999999999999999", b"", b"before\0after"),
    ):
        parent = repository.git("rev-parse", "HEAD").encode()
        who = b" E\xe9 <e@example.org> " + date + b" +0000\n"
        body = b"tree " + tree.encode() + b"\nparent " + parent + b"\nauthor" + who + b"committer" + who + more + b"\n"
        made = repository.git("hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=body + message)
        repository.git("update-ref", "HEAD", made)

    assert import_history(home, repository.path).status is Status.DONE

    found = read(home)
    assert [each.message for each in found] == ["", "x" * 10_000, "héllo", "h\ufffdllo", "before"]
    assert [each.date for each in found[2:]] == [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)] * 2 + [None]
    assert found[2].author[0].name == "Eé"
    assert content(home)["authors"] == 2


def test_a_commit_with_more_files_than_a_transaction_holds_comes_in_pieces(repository: Repository, home: Path) -> None:
    """Stopped between them, the commit is not counted yet; the next run brings the rest, and nothing twice."""
    lines = [
        b"commit refs/heads/main\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\ndata 3\nAll\n"
    ]
    lines += [b"M 100644 inline f/%d\ndata 1\n1\n" % number for number in range(12_000)]
    repository.git("fast-import", "--quiet", stdin=b"".join(lines))

    import_history(home, repository.path, on_progress=fail_after(1))
    halfway = content(home)
    assert (len(halfway["shas"]), halfway["files"], halfway["edges"]["changed"]) == (1, 5_000, 5_000)
    assert halfway["variables"] == {"commits": 0, "frontier": ""}

    assert import_history(home, repository.path).status is Status.DONE
    whole = content(home)
    assert (len(whole["shas"]), whole["files"], whole["edges"]["changed"]) == (1, 12_000, 12_000)
    assert whole["variables"] == {"commits": 1, "frontier": whole["shas"][0]}


def test_what_its_owner_deleted_stays_deleted(repository: Repository, home: Path) -> None:
    """A file and an author that new commits speak of are not brought back, and the commits come all the same."""
    repository.commit("One", {"a.txt": "1"})
    import_history(home, repository.path)
    with PodClient(home=home) as client:
        client.delete_items([*client.search({"type": "ChangedFile"}), *client.search({"type": "Author"})])
    repository.commit("Two", {"a.txt": "2", "b.txt": "2"})

    assert import_history(home, repository.path).status is Status.DONE

    assert paths(home) == {"One": [], "Two": ["b.txt"]}
    assert read(home, "Author") == []


def test_the_configuration_and_the_environment_of_a_user_change_nothing(
    forty: Repository, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what "git log" would do for them, nor the repository that a hook is in."""
    for name, value in (("log.showSignature", "true"), ("log.showRoot", "false"), ("diff.renames", "copies")):
        forty.git("config", name, value)
    forty.git("config", "gpg.program", "/bin/false")
    forty.git("config", "i18n.logOutputEncoding", "UTF-16")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert import_history(home, forty.path).status is Status.DONE
    assert totals(home) == FORTY


def test_two_authors_of_one_address_are_one(repository: Repository, home: Path) -> None:
    """With the name of the first; and two addresses are two."""
    repository.commit("One", {}, author=ADA)
    repository.commit("Two", {}, author="Ada Lovelace <ada@example.org>")
    repository.commit("Three", {}, author=BOB)
    import_history(home, repository.path)
    assert sorted((who.email, who.name) for who in read(home, "Author")) == [
        ("ada@example.org", "Ada"),
        ("bob@example.org", "Bob"),
    ]


@pytest.mark.parametrize("batch_size", [0, 1_001, "many"])
def test_a_batch_size_that_no_transaction_holds_is_refused(repository: Repository, home: Path, batch_size: Any) -> None:
    """Before the run is begun; the message names the setting."""
    with pytest.raises(ValueError, match="batch_size"):
        import_history(home, repository.path, batch_size=batch_size)


def demonstrate(repository: Path) -> list[str]:
    """Return what the demonstration prints, but for the ids of runs."""
    argv = [sys.executable, str(DEMO), "--repository", str(repository)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_demonstration_kills_a_run_and_shows_that_nothing_is_lost_or_twice(forty: Repository) -> None:
    """Three batches of seven are there after the kill, all forty after the second run, and nothing new comes third."""
    assert demonstrate(forty.path) == [
        "forty: git rev-list --count says 40 commits; 7 at once",
        "first run",
        "  SIGKILL after batch 3 of 6",
        "  began behind 0, imported 21, killed: 21 commits in the Pod",
        "second run",
        "  began behind 21, imported 19, ended with exit code 0: 40 commits in the Pod",
        "third run",
        "  began behind 40, imported 0, ended with exit code 0: 40 commits in the Pod",
        "40 commits, 40 different ones, the same as git's",
    ]


def test_the_demonstration_makes_a_repository_where_there_is_none(tmp_path: Path) -> None:
    """As in what was unpacked from an archive."""
    (tmp_path / "unpacked").mkdir()
    first, second, *_, last = demonstrate(tmp_path / "unpacked")
    assert first == ("unpacked has no whole history of 6 commits or more: a small one is made")
    assert second == "small: git rev-list --count says 60 commits; 10 at once"
    assert last == "60 commits, 60 different ones, the same as git's"
