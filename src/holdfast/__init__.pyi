# What __init__.py loads on first use, said to type checkers. A test holds the two equal.

from holdfast.context import PodClient as PodClient
from holdfast.context import Settings as Settings
from holdfast.errors import ConflictError as ConflictError
from holdfast.errors import DamagedError as DamagedError
from holdfast.errors import DeniedError as DeniedError
from holdfast.errors import FencedError as FencedError
from holdfast.errors import HoldfastError as HoldfastError
from holdfast.errors import InvalidError as InvalidError
from holdfast.errors import NotFoundError as NotFoundError
from holdfast.errors import PluginError as PluginError
from holdfast.errors import UnavailableError as UnavailableError
from holdfast.items import Account as Account
from holdfast.items import CategoricalLabel as CategoricalLabel
from holdfast.items import CVUStoredDefinition as CVUStoredDefinition
from holdfast.items import Dataset as Dataset
from holdfast.items import DatasetEntry as DatasetEntry
from holdfast.items import Edge as Edge
from holdfast.items import EmailMessage as EmailMessage
from holdfast.items import Field as Field
from holdfast.items import File as File
from holdfast.items import Item as Item
from holdfast.items import Message as Message
from holdfast.items import PersistentState as PersistentState
from holdfast.items import Person as Person
from holdfast.items import Photo as Photo
from holdfast.items import Plugin as Plugin
from holdfast.items import PluginRun as PluginRun
from holdfast.items import Secret as Secret

__version__: str
