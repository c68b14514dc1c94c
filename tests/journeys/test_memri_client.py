"""Memri's own client, unmodified, against a server: what its users do, and its own tests promise them."""

from collections.abc import Iterator

import pytest

from tests.components.memri import Client, install
from tests.components.servers import Served, serving

# One worker installs the client, and all of these tests run there.
pytestmark = [pytest.mark.component("memri"), pytest.mark.xdist_group("memri")]

BEGIN = """
import sys

from pymemri.data.schema import *
from pymemri.data.schema.schema import SchemaMeta
from pymemri.examples.example_schema import Dog
from pymemri.pod.client import PodClient, PodError

URL = sys.argv[1]
META = SchemaMeta(name="dogs", url="dogs.example", version="1")


def refusal(work, *arguments, **named):
    try:
        work(*arguments, **named)
    except PodError as exc:
        return exc.status, exc.message
    raise AssertionError("it was not refused")
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    """The client, installed once."""
    return install(tmp_path_factory.mktemp("memri"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server; each program makes a Pod of its own in it."""
    with serving(tmp_path_factory.mktemp("served") / "home") as served:
        yield served


def test_its_client_writes_reads_and_searches(client: Client, served: Served) -> None:
    """Items of the data model undeclared, and of a class of its own; edges, pages, updates of what changed."""
    program = """
pod = PodClient(url=URL)
assert pod.api.test_connection()
assert pod.create(EmailMessage(content="c", title="t")) and pod.create(Message(content="c"))
assert pod.add_to_schema(META, Dog) and pod.add_to_schema(META, Dog, Person, Account, EmailMessage)

dog = Dog(name="Rex", age=3, weight=33.5, bites=False)
assert pod.create(dog)
pod.reset_local_db()
read = pod.get(dog.id)
assert (read.name, read.age, read.weight, read.bites) == ("Rex", 3, 33.5, False)
assert read.dateCreated and read.dateServerModified and read._in_pod
assert pod.exists(dog.id) and not pod.exists("nobody")
try:
    pod.get("nobody")
    raise AssertionError
except ValueError:
    pass

person = Person(firstName="Ada")
assert pod.create(person) and not person._updated_properties
person.lastName = "L"
assert person._updated_properties == {"lastName"}
assert pod.update_item(person) and pod.update_item(person)
pod.reset_local_db()
assert pod.get(person.id, expanded=False).lastName == "L"

account = Account(handle="h", service="s")
assert pod.create(account)
person.add_edge("account", account)
assert pod.create_edge(person.get_edges("account")[0])
assert [edge["item"].handle for edge in pod.get_edges(person.id)] == ["h"]
pod.reset_local_db()
assert [each.handle for each in pod.get(person.id).account] == ["h"]
found = pod.search({"type": "Person"})
assert [type(each) for each in found] == [Person] and [each.handle for each in found[0].account] == ["h"]
pod.reset_local_db()
assert pod.search({"type": "Person"}, include_edges=False)[0].get_all_edges() == []
assert pod.delete_edge(person.get_edges("account")[0]) and pod.get_edges(person.id) == []
assert pod.external_id_exists(Account(externalId="x")) is False

many = [Account(identifier=str(number), service="many") for number in range(100)]
assert pod.bulk_action(create_items=many)
pod.reset_local_db()
asked = {"type": "Account", "service": "many"}
ids = [each.id for each in pod.search(asked)]
assert sorted(ids) == sorted(each.id for each in many)
pages = list(pod.search_paginate(asked, limit=30))
assert [len(page) for page in pages] == [30, 30, 30, 10]
assert [each.id for page in pages for each in page] == ids
assert list(pod.search_paginate({"type": "Account", "service": "none"})) == []
assert [each.id for each in pod.search({"ids": ids[5:1:-1]})] == ids[5:1:-1]
assert pod.search({"ids": []}) == []
assert [each.id for each in pod.search_typed(Dog)] == [dog.id]

last = Person(firstName="Last")
assert pod.create(last) and pod.search_last_added(type="Person").id == last.id
assert pod.search_last_added(type="Person", with_prop="firstName", with_val="Ada").id == person.id
"""
    client.run(BEGIN + program, served.url)


def test_its_client_writes_much_at_once_and_syncs(client: Client, served: Served) -> None:
    """All of a bulk or nothing; a class that grew; and two clients of one Pod, with each way to settle a conflict."""
    program = """
from typing import Optional

pod = PodClient(url=URL)
pod.add_to_schema(META, Dog)
dogs, person = [Dog(name=str(number)) for number in range(100)], Person(firstName="Ada")
edges = [Edge(dog, person, "owner") for dog in dogs[:2]]
assert pod.bulk_action(create_items=[*dogs, person], create_edges=edges)
found = pod.search({"type": "Dog"})
assert len(found) == 100 and sorted(dog.name for dog in found if dog.owner) == ["0", "1"]

person.firstName = "Bea"
assert pod.bulk_action(update_items=[person], delete_items=[dogs[0]])
assert pod.delete_items([dogs[1]])
pod.reset_local_db()
assert pod.get(person.id).firstName == "Bea" and not pod.exists(dogs[0].id)
assert len(pod.search({"type": "Dog"})) == 98
assert [each.id for each in pod.search({"type": "Dog", "deleted": True})] == [dogs[0].id, dogs[1].id]
nobody = Edge(person, Account(id="nobody"), "account")
assert not pod.bulk_action(create_items=[Person(id="half")], create_edges=[nobody])
assert not pod.exists("half")

class Grown(Item):
    field1: str

pod.add_to_schema(META, Grown)
assert pod.bulk_action(create_items=[Grown(field1="one")])
again = PodClient(url=URL, owner_key=pod.owner_key, database_key=pod.database_key)

class Grown(Item):
    field1: str
    field2: Optional[str]

again.add_to_schema(META, Grown)
assert again.bulk_action(create_items=[Grown(field1="two", field2="more")])
assert [each.field2 for each in again.search_typed(Grown)] == [None, "more"]
known = {"owner_key": pod.owner_key, "database_key": pod.database_key}
assert [each.firstName for each in PodClient(url=URL, create_account=False, **known).search_typed(Person)] == ["Bea"]

for priority, expected in {"local": "here", "remote": "there", "newest": "there"}.items():
    one = PodClient(url=URL)
    mails = [EmailMessage(content="old") for _ in range(3)]
    one.bulk_action(create_items=mails[:2])
    mails[2].store(one)
    mails[0].content = "here"
    mails[0].title = mails[1].title = mails[2].title = "new"
    two = PodClient(url=URL, owner_key=one.owner_key, database_key=one.database_key)
    for mail in mails[:2]:
        other = two.get(mail.id)
        other.content = "there"
        assert two.update_item(other)
    assert one.sync(priority=priority)
    assert [mail.content for mail in mails] == [expected, "there", "old"], priority
    assert all(mail._in_pod for mail in mails) and two.get(mails[2].id).title == "new"
"""
    client.run(BEGIN + program, served.url)


def test_its_api_says_what_it_refuses(client: Client, served: Served) -> None:
    """A status and a text, and never a silence; what it takes, it answers as its client expects."""
    program = """
pod = PodClient(url=URL)
api = pod.api
assert "cargo" in api.pod_version
id_ = api.create_item({"type": "Person", "email": "a"})
api.update_item({"id": id_, "email": "b", "birthDate": 10})
(item,) = api.get_item(id_)
assert (item["type"], item["email"], item["birthDate"], item["deleted"]) == ("Person", "b", 10, False)
api.update_item({"id": id_, "email": None})
assert "email" not in api.get_item(id_)[0]

other = api.create_item({"type": "Account", "id": "acc"})
assert other == "acc"
edge = {"_source": id_, "_target": other, "_name": "account"}
api.create_edge(edge)
assert api.get_edges(other, direction="Incoming", expand_items=False) == [{"name": "account", "item": id_}]
assert api.search({"id": other, "~[[edges]]": {}})[0]["~[[edges]]"][0]["_item"]["id"] == id_
api.delete_edge(edge)
answer = api.bulk(delete_items=[other], search=[{"id": id_}, {"id": other}])
assert [len(found) for found in answer["search"]] == [1, 0]
api.delete_item(id_)
assert api.get_item(id_) == []

assert refusal(api.create_item, {"type": "Person", "nickname": "x"})[0] == 422
status, text = refusal(api.create_item, {"type": "Person", "email": 1})
assert status == 422 and "Person.email cannot be 1" in text
assert refusal(api.create_item, {"type": "Account", "id": "acc"})[0] == 409
assert refusal(api.update_item, {"id": "nobody"})[0] == 404
assert refusal(api.search, {"type": "Nothing"})[0] == 422
assert refusal(api.send_email, "a@b")[0] == 404
status, text = refusal(api.create_schema, {"nodes": {"Person": {"properties": {"email": "Integer"}}}})
assert status == 409 and "Person.email is Text" in text

wrong = PodClient(url=URL, owner_key=pod.owner_key, create_account=False)
assert refusal(wrong.api.search, {"type": "Person"})[0] == 401
"""
    client.run(BEGIN + program, served.url)


def test_its_items_come_back_as_they_were_sent(client: Client, served: Served) -> None:
    """With each kind of property, and edges to one type and to several; every class of its data model is declared."""
    program = """
from datetime import datetime, timezone
from typing import List, Optional, Union

from pymemri.data.schema.schema import get_schema


class Thing(Item):
    text: Optional[str] = None
    integer: Optional[int] = None
    real: Optional[float] = None
    flag: Optional[bool] = None
    instant: Optional[datetime] = None
    one: List[Account] = []
    several: List[Union[Account, Person]] = []


pod = PodClient(url=URL)
assert pod.api.search({"type": "Message"}) == []
assert pod.add_to_schema(META, Account, Thing)
instant = datetime(2022, 2, 3, 4, 5, 6, 789000, tzinfo=timezone.utc)
thing = Thing(text="ü", integer=-(2**63), real=0.1, flag=False, instant=instant)
account, person = Account(handle="h"), Person(firstName="Ada")
thing.add_edge("one", account)
thing.add_edge("several", person)
thing.add_edge("several", account)
assert all(pod.create(item) for item in (thing, account, person)) and pod.create_edges(thing.get_all_edges())
pod.reset_local_db()
read = pod.get(thing.id)
assert (read.text, read.integer, read.real, read.flag, read.instant) == ("ü", -(2**63), 0.1, False, instant)
assert [each.handle for each in read.one] == ["h"]
assert [type(each).__name__ for each in read.several] == ["Person", "Account"]
assert {name: value for name, value in read.to_json().items() if not name.startswith("date")} == {
    name: value for name, value in thing.to_json().items() if not name.startswith("date")
}
for cls in get_schema().values():
    assert pod.add_to_schema(META, cls)
"""
    client.run(BEGIN + program, served.url)


def test_its_files_and_photos_are_kept_and_deleted(client: Client, served: Served) -> None:
    """Uploaded in a thread of its own or not; uploading again is no failure; a deleted file is gone with its item."""
    program = """
import threading

import numpy

pod = PodClient(url=URL)
photo = Photo.from_np(numpy.arange(640 * 480, dtype=numpy.uint32).astype(numpy.uint8).reshape(640, 480))
file = photo.file[0]
assert refusal(pod.api.upload_file, photo.data)[0] == 404
assert pod.create(file)
came = threading.Event()
assert pod.upload_file(photo.data, callback=lambda _: came.set()) and came.wait(30)
assert pod.get_file(file.sha256) == photo.data
assert refusal(pod.api.upload_file, photo.data)[0] == 409
assert pod.upload_file(photo.data, asyncFlag=False)

second = Photo.from_np(numpy.zeros((64, 64), dtype=numpy.uint8))
assert pod.create_photo(second, asyncFlag=False)
pod.reset_local_db()
read = pod.get_photo(second.id)
assert read.data == second.data and read.to_PIL().size == (64, 64)
assert (read.width, read.height, read.mode, read.encoding) == (64, 64, "L", "PNG")

assert pod.delete_file(file.id) and not pod.delete_file(file.id)
pod.reset_local_db()
assert not pod.exists(file.id) and refusal(pod.get_file, file.sha256)[0] == 404
assert [each.id for each in pod.search_typed(File)] == [second.file[0].id]
"""
    client.run(BEGIN + program, served.url)


def test_its_datasets_are_read_as_tables(client: Client, served: Served) -> None:
    """Over edges that lead to several types, and over two edges on end."""
    program = """
pod = PodClient(url=URL)
dataset, items = Dataset(name="mails"), []
for number in range(10):
    entry, label = DatasetEntry(), CategoricalLabel(labelValue=f"l{number}")
    kind = Message if number % 2 else EmailMessage
    mail, account, person = kind(content=f"c{number}"), Account(handle=f"h{number}"), Person(firstName=f"p{number}")
    dataset.add_edge("entry", entry)
    entry.add_edge("annotation", label)
    entry.add_edge("data", mail)
    mail.add_edge("sender", account)
    account.add_edge("owner", person)
    items += [entry, label, mail, account, person]
edges = [edge for item in (dataset, *items) for edge in item.get_all_edges()]
assert pod.bulk_action(create_items=[dataset, *items], create_edges=edges)
pod.reset_local_db()
columns = ["data.content", "data.sender.handle", "data.sender.owner.firstName", "annotation.labelValue"]
table = pod.get_dataset("mails").to("dict", columns=columns)
rows = sorted(zip(*(table[column] for column in columns)))
assert rows == [(f"c{number}", f"h{number}", f"p{number}", f"l{number}") for number in range(10)]
"""
    client.run(BEGIN + program, served.url)


def test_its_searches_follow_edges(client: Client, served: Served) -> None:
    """In the order of a search, with values that the client puts in the text; items have their edges."""
    program = """
from pymemri.pod.graphql_utils import GQLQuery

pod = PodClient(url=URL)
person, accounts = Person(displayName="Ada"), [Account(handle=each, service=each) for each in ("chat", "mail")]
message = Message(subject="Hello", service="chat")
edges = [Edge(each, person, "owner") for each in accounts] + [Edge(message, accounts[0], "sender")]
assert pod.bulk_action(create_items=[person, message, *accounts], create_edges=edges)
assert pod.bulk_action(create_items=[Person(firstName=str(number)) for number in range(100)])
pod.reset_local_db()
found = pod.search_graphql(GQLQuery("query{Person{id}}"))
assert [each.id for each in found] == [each.id for each in pod.search({"type": "Person"}, include_edges=False)]

pod.reset_local_db()
(found,) = pod.search_graphql("query { Message { subject sender { handle owner { displayName } } } }")
assert (found.subject, found.sender[0].handle, found.sender[0].owner[0].displayName) == ("Hello", "chat", "Ada")
pod.reset_local_db()
text = 'query { Account (filter: {service: {eq: "$service"}}) { handle } }'
assert [each.handle for each in pod.search_graphql(text, {"service": "mail"})] == ["mail"]

text = 'query { Person { id ~owner (filter: {service: {eq: "chat"}}) { service ~sender { subject } } } }'
ada = next(each for each in pod.api.graphql(text)["data"] if each["id"] == person.id)
assert [(each["service"], each["~sender"][0]["subject"]) for each in ada["~owner"]] == [("chat", "Hello")]
status, text = refusal(pod.search_graphql, "query { Message { subject nothing } }")
assert (status, text) == (400, "'nothing' is no property and no edge of Message")
"""
    client.run(BEGIN + program, served.url)


def test_its_commands_begin_runs(client: Client, served: Served) -> None:
    """With stored keys, by a description of the run, and in the environment of a run that has a token."""
    program = """
import json
import os
import types

import requests

# What makes commands of these functions is not to be had whole any more; they are called as they are.
sys.modules["fastscript"] = types.SimpleNamespace(Param=lambda *about: about, call_parse=lambda function: function)

from pymemri.plugin import constants, states
from pymemri.plugin.cli import run_plugin, simulate_run_plugin_from_frontend, store_keys
from pymemri.webserver.webserver import WebServer

WebServer.run = lambda self: None  # it would listen on every address of this machine

about = {
    "containerImage": "pymemri",
    "pluginModule": "pymemri.examples.example_plugin",
    "pluginName": "ExamplePlugin",
    "account": {"service": "mail", "identifier": "ada", "secret": "token", "refreshToken": "refresh"},
}
with open("about.json", "w") as file:
    json.dump(about, file)
store_keys()
run_plugin(pod_full_address=URL, metadata="about.json")
pod = PodClient.from_local_keys(url=URL)
(done,) = pod.search({"type": "PluginRun"})
assert (done.status, done.account[0].identifier) == (states.RUN_COMPLETED, "ada")
assert [each.content for each in pod.search_typed(Message)] == ["test"]

begun = simulate_run_plugin_from_frontend(pod_full_address=URL, metadata="about.json")
pod.reset_local_db()
found = pod.search_last_added("PluginRun")
assert (found.id, found.containerImage, found.account[0].secret) == (begun.id, "pymemri", "token")

pod.api.update_item({"id": begun.id, "reads": '["Message"]', "writes": '["Message"]'})
claims = f"{URL}/api/{pod.owner_key}/claims"
claim = requests.post(claims, json={"run": begun.id}, headers={"Authorization": f"Bearer {pod.database_key}"}).json()
os.environ |= {
    constants.POD_FULL_ADDRESS_ENV: URL,
    constants.POD_OWNER_KEY_ENV: pod.owner_key,
    constants.POD_TARGET_ITEM_ENV: json.dumps({"id": begun.id}),
    constants.POD_AUTH_JSON_ENV: json.dumps({"data": {"token": claim["token"]}}),
}
run_plugin(read_args_from_env=True)
pod.reset_local_db()
assert pod.get(begun.id).status == states.RUN_COMPLETED and len(pod.search_typed(Message)) == 2
print("done", flush=True)
os._exit(0)  # its listeners would sleep for seconds
"""
    assert client.run(BEGIN + program, served.url).splitlines()[-1] == "done"


def test_its_plugins_run(client: Client, served: Served) -> None:
    """As the owner's, and with a token that gives a right to what the run is for, and to nothing else."""
    program = """
import os

import requests
from pymemri.plugin import states
from pymemri.plugin.pluginbase import create_run_expanded, run_plugin_from_run_id
from pymemri.webserver.webserver import WebServer

WebServer.run = lambda self: None  # it would listen on every address of this machine

pod = PodClient(url=URL)


def new_run(**more):
    module = {"pluginModule": "pymemri.examples.example_plugin", "pluginName": "ExamplePlugin"}
    return PluginRun(containerImage="some-image", **module, **more)


run = new_run(status="not started", webserverPort=8080)
run.add_edge("account", Account(identifier="login", secret="password"))
create_run_expanded(pod, run)
run_plugin_from_run_id(run.id, pod)
pod.reset_local_db()
done = pod.get(run.id)
assert done.status == states.RUN_COMPLETED and done.account[0].secret == "password"
assert [message.content for message in pod.search_typed(Message)] == ["test"]
assert pod.plugin_status([run.id]) == {run.id: {"status": "unreachable"}}

run = new_run()
assert pod.create(run)
pod.api.update_item({"id": run.id, "reads": '["Message"]', "writes": '["Message"]'})
claim = requests.post(
    f"{URL}/api/{pod.owner_key}/claims",
    json={"run": run.id},
    headers={"Authorization": f"Bearer {pod.database_key}"},
).json()
assert pod.plugin_status([run.id]) == {run.id: {"status": "idle"}}
inside = PodClient(url=URL, owner_key=pod.owner_key, auth_json={"data": {"token": claim["token"]}})
run_plugin_from_run_id(run.id, inside)
pod.reset_local_db()
assert pod.get(run.id).status == states.RUN_COMPLETED
assert len(pod.search_typed(Message)) == 2
assert refusal(inside.api.search, {"type": "Person"})[0] == 403 and inside.api.search({"type": "Account"}) == []
print("done", flush=True)
os._exit(0)  # its listeners would sleep for seconds
"""
    assert client.run(BEGIN + program, served.url).splitlines()[-1] == "done"
