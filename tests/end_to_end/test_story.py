"""The newcomer's story, by the real command line over real processes; and what bad input gets. In order."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import get_story
from tests.end_to_end.files import hash_of, make_file
from tests.end_to_end.network import DEADLINE, RunningNetwork, wait_for

SIZE = 64 * 2**20
TOKEN = 10**18
SETTINGS = {"restart": True}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def stored(network: RunningNetwork, folder: Path) -> str:
    """A file of 64 MiB on the network, by `cp`; its hash."""
    digest = make_file(folder / "data.bin", SIZE)
    copied = network.ask("cp", str(folder / "data.bin"), "fh://demo/data.bin", "--yes")
    assert [item["size"] for item in copied["copied"]] == [SIZE]
    return digest


@pytest.fixture(scope="module")
def paid(network: RunningNetwork, stored: str) -> dict[str, Any]:
    """The first epoch in which the file was challenged and paid, once it is active."""

    def look() -> dict[str, Any] | None:
        epochs = network.ask("epoch", "list")["epochs"]
        return next((e for e in reversed(epochs) if e["status"] == "active" and int(e["credits_spent"])), None)

    return wait_for(look, "an epoch with payments is active")


def test_status_says_that_all_is_well(network: RunningNetwork) -> None:
    told = network.ask("status")
    assert told["healthy"], told["problems"]
    kinds = [process["kind"] for process in told["processes"]]
    assert (kinds.count("member"), kinds.count("node")) == (4, 8)
    assert told["epoch"]["open"] == told["epoch"]["posted"] + 1
    assert network.run("status").stdout.rstrip().endswith("all is well")


def test_the_doctor_finds_nothing(network: RunningNetwork) -> None:
    told = network.ask("doctor")
    assert told["healthy"], told
    names = {check["name"] for check in told["checks"]}
    assert {"disk", "clock", "rpc", "members", "operators", "balance", "executors"} <= names


def test_a_file_comes_back_byte_for_byte(network: RunningNetwork, folder: Path, stored: str) -> None:
    listed = network.ask("ls", "fh://demo")["objects"]
    assert [(o["path"], o["size"], o["nodes"]) for o in listed] == [("fh://demo/data.bin", SIZE, 6)]
    assert network.ask("ls")["buckets"] == [{"name": "demo", "k": 3, "n": 6}]
    network.ask("cp", "fh://demo/data.bin", str(folder / "back.bin"), "--yes")
    assert hash_of(folder / "back.bin") == stored


def test_copying_says_its_cost_and_does_not_go_on_unasked(network: RunningNetwork, folder: Path, stored: str) -> None:
    unasked = network.run("cp", str(folder / "data.bin"), "fh://demo/other.bin")
    assert unasked.code == 2
    assert "credits an hour" in unasked.stderr
    assert "--yes" in unasked.stderr
    assert len(network.ask("ls", "fh://demo")["objects"]) == 1


def test_operators_hold_and_earn(network: RunningNetwork, paid: dict[str, Any]) -> None:
    listed = network.ask("operator", "list")["operators"]
    assert [row["name"] for row in listed] == [f"operator-{i + 1}" for i in range(8)]
    assert all(int(row["bond"]) == 2_000 * TOKEN for row in listed)
    holders = [row for row in listed if row["holds"]]
    assert len(holders) == 6
    assert sum(row["holds"] for row in holders) >= 2 * SIZE
    assert all(int(row["earned"]) > 0 for row in holders)
    assert all(row["state"] == "ready" for row in listed)


def test_epochs_are_listed_shown_and_replayed(network: RunningNetwork, paid: dict[str, Any]) -> None:
    number = str(paid["epoch"])
    assert paid["verdicts"]["good"] > 0
    shown = network.ask("epoch", "show", number)
    assert shown["on_chain"]
    assert shown["report"]["accounts_root"] == paid["accounts_root"]
    assert len([p for p in shown["payments"] if p["mode"] == "stream"]) == 6
    replayed = network.ask("epoch", "replay", number)
    assert replayed["on_chain"]
    assert replayed["accounts_root"] == paid["accounts_root"]


def test_why_explains_a_payment_and_a_zero(network: RunningNetwork, paid: dict[str, Any]) -> None:
    number = str(paid["epoch"])
    for row in network.ask("operator", "list")["operators"]:
        told = network.ask("why", row["name"], "--epoch", number)
        assert told["chain"]["equals"]
        if row["holds"]:
            assert told["verdicts"]
            assert (
                int(told["totals"]["tokens"]) == sum(int(p["earned"]) + int(p["subsidy"]) for p in told["payments"]) > 0
            )
            assert told["settled"]["root"] == paid["accounts_root"]
        else:
            assert told["zero"]
    text = network.run("why", "operator-1", "--epoch", number).stdout
    assert "On chain" in text


def test_claimed_tokens_arrive(network: RunningNetwork, paid: dict[str, Any]) -> None:
    holder = next(row for row in network.ask("operator", "list")["operators"] if row["holds"])
    before = int(tokens_of(network, holder["name"]))
    claimed = network.ask("claim", "--as", holder["name"])
    assert int(claimed["claimed"]) > 0
    assert tokens_of(network, holder["name"]) == before + int(claimed["claimed"])
    assert int(network.ask("operator", "list")["operators"][index_of(holder)]["claimed"]) == int(claimed["claimed"])


def test_a_watcher_verifies_every_epoch(network: RunningNetwork, paid: dict[str, Any]) -> None:
    done = network.run("watch", "--until", str(paid["epoch"]), "--json")
    assert done.data == {"verified": paid["epoch"], "contested": 0, "epochs": []}
    assert done.stderr.count(": verified") == paid["epoch"]


def tokens_of(network: RunningNetwork, name: str) -> int:
    (row,) = network.ask("wallet", "show", name)
    return int(row["tokens"])


def index_of(row: dict[str, Any]) -> int:
    return int(row["name"].rpartition("-")[2]) - 1


def test_a_changed_byte_anywhere_in_a_bundle_is_found_and_named(
    network: RunningNetwork, folder: Path, paid: dict[str, Any]
) -> None:
    number, path = str(paid["epoch"]), folder / "epoch.bundle"
    network.ask("epoch", "replay", number, "--save", str(path))
    assert network.ask("epoch", "replay", number, "--bundle", str(path))["on_chain"]
    good = path.read_bytes()
    changed = folder / "changed.bundle"
    for place in (len(good) // 7, len(good) // 2, len(good) - 30):
        changed.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        error = network.run("epoch", "replay", number, "--bundle", str(changed), "--json").error
        assert error["code"] == "replay_mismatch"
        assert error["details"]["first"]
        assert error["details"]["first"].split(".")[0] in error["message"] or "container" in error["message"]


def test_a_wrong_passphrase_is_never_an_empty_list(network: RunningNetwork, stored: str) -> None:
    error = network.run("ls", "fh://demo", "--json", FREEHOLD_PASSPHRASE="wrong").error
    assert error["code"] == "wrong_passphrase"
    assert "Nothing is lost" in error["hint"]


def test_an_account_without_credits_hears_how_many_are_missing(network: RunningNetwork, folder: Path) -> None:
    secret = {"FREEHOLD_PASSPHRASE": "mine"}
    made = network.ask("wallet", "new", "poor", **secret)
    assert len(made["words"].split()) == 12
    (folder / "small.txt").write_text("hello")
    source = str(folder / "small.txt")
    refused = network.run("cp", source, "fh://mine/small.txt", "--yes", "--json", "--wallet", "poor", **secret)
    assert refused.error["code"] == "insufficient_credits"
    assert int(refused.error["details"]["missing"]) > 0
    assert "freehold credits buy" in refused.error["hint"]
    assert network.run("wallet", "new", "poor", "--json", **secret).error["code"] == "conflict"


def test_sent_tokens_buy_credits_that_store_a_file(network: RunningNetwork, folder: Path) -> None:
    secret = {"FREEHOLD_PASSPHRASE": "mine"}
    network.ask("wallet", "new", "friend", **secret)
    (friend,) = network.ask("wallet", "show", "friend")
    network.ask("wallet", "send", friend["address"], "500", "--yes")
    assert tokens_of(network, "friend") == 500 * TOKEN
    network.give_gas(friend["address"])
    bought = network.ask("credits", "buy", "100", "--yes", "--wallet", "friend", **secret)
    assert int(bought["paid_in"]) == 100 * TOKEN
    assert int(network.ask("credits", "show", "friend")["paid_in"]) == 100 * TOKEN
    (folder / "letter.txt").write_text("hello")
    network.ask("cp", str(folder / "letter.txt"), "fh://letters/", "--yes", "--wallet", "friend", **secret)
    listed = network.ask("ls", "fh://letters", "--wallet", "friend", **secret)["objects"]
    assert [o["path"] for o in listed] == ["fh://letters/letter.txt"]


def test_a_file_that_changes_while_it_is_sent_is_refused(network: RunningNetwork, folder: Path, stored: str) -> None:
    path = folder / "changing.bin"
    make_file(path, 192 * 2**20)
    upload = network.launch("cp", str(path), "fh://demo/changing.bin", "--yes", "--json")
    try:
        start = network.stored_bytes()
        on_its_way = lambda: network.stored_bytes() > start + 16 * 2**20 or upload.poll() is not None  # noqa: E731
        wait_for(on_its_way, "the upload is on its way")
        with path.open("r+b") as file:
            file.seek(190 * 2**20)
            file.write(b"changed")
        out, _ = upload.communicate(timeout=DEADLINE)
    finally:
        if upload.poll() is None:
            upload.kill()
            upload.wait()
    (error,) = json.loads(out)["errors"]
    assert error["code"] == "source_changed"
    assert [o["path"] for o in network.ask("ls", "fh://demo")["objects"]] == ["fh://demo/data.bin"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["cp", "no-such-file", "fh://demo/x", "--yes"], "not_found"),
        (["cp", "fh://demo/no-such-object", "x", "--yes"], "key_not_found"),
        (["cp", "fh://nobucket/x", "x", "--yes"], "bucket_not_found"),
        (["ls", "fh://no_bucket"], "invalid_input"),
        (["mb", "fh://wide", "-n", "81"], "invalid_input"),
        (["why", "nobody"], "not_found"),
        (["epoch", "show", "99999"], "not_found"),
        (["epoch", "replay", "99999"], "not_found"),
        (["claim", "--as", "0x12"], "not_found"),
        (["rb", "fh://demo"], "bucket_not_empty"),
    ],
)
def test_mistakes_get_a_typed_error(network: RunningNetwork, stored: str, arguments: list[str], code: str) -> None:
    assert network.run(*arguments, "--json").error["code"] == code


def test_more_operators_than_there_are_is_said(network: RunningNetwork, folder: Path, stored: str) -> None:
    network.ask("mb", "fh://wide", "-k", "3", "-n", "9")
    error = network.run("cp", str(folder / "small.txt"), "fh://wide/x", "--yes", "--json").error
    assert error["code"] == "insufficient_operators"
    assert "8" in error["message"]


def test_a_second_network_in_one_home_is_refused(network: RunningNetwork) -> None:
    second = network.run("up", "--json")
    assert second.error["code"] == "conflict"
    assert str(network.supervisor.pid) in second.error["message"]


def test_a_program_that_dies_is_started_again_and_it_is_said(network: RunningNetwork) -> None:
    dead = network.pid("operator-8")
    network.signal("operator-8", signal.SIGKILL)
    wait_for(lambda: network.pid("operator-8") != dead, "the supervisor starts it again")
    wait_for(lambda: network.ask("status")["healthy"], "it is healthy again")
    assert "operator-8 was ended by signal 9; starting it again" in network.log("up")


def test_piped_commands_show_no_progress_bar(network: RunningNetwork, folder: Path, stored: str) -> None:
    done = network.run("cp", "fh://demo/data.bin", str(folder / "again.bin"), "--yes")
    assert done.code == 0
    assert "\r" not in done.stderr + done.stdout


def test_the_commands_of_the_readme_work_in_the_order_in_which_it_has_them(
    network: RunningNetwork, folder: Path, paid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    digest = make_file(folder / "any-real-file", 2**20)
    before, said = tokens_of(network, "operator-1"), []
    for words in get_story():
        at_epoch = words[0] in ("epoch", "why") and words[-1].isdigit()
        typed = [*words[:-1], str(paid["epoch"])] if at_epoch else words
        done = network.run(*typed, *(["--yes"] if words[0] == "cp" else []))  # nobody answers its question here
        assert done.code == 0, (typed, done)
        assert done.stdout
        said.append((" ".join(words), done.stdout))
    assert hash_of(folder / "back") == digest
    told = dict(said)
    assert told["status"].rstrip().endswith("all is well")
    assert "fh://demo/any-real-file" in told["ls fh://demo"]
    assert "operator-8" in told["operator list"]
    assert str(paid["epoch"]) in told["epoch list"]
    assert "equals the report that the chain accepted" in told["epoch replay 3"]
    claimed = tokens_of(network, "operator-1") > before
    assert claimed == told["claim --as operator-1"].startswith("claimed")
