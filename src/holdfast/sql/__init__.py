"""Door: the database. SQLite in one encrypted file per owner.

Hides SQL, connections, locks of the database, its formats and its errors; what it does not do is decide: what a batch
means is evaluated by `holdfast.store`.
"""

from __future__ import annotations

from holdfast.sql.agenda import Agenda
from holdfast.sql.backup import Backup, back_up, restore, sharing_pod
from holdfast.sql.keyring import Keyring
from holdfast.sql.migration import FORMAT
from holdfast.sql.sqlite import SqliteStore

__all__ = ["FORMAT", "Agenda", "Backup", "Keyring", "SqliteStore", "back_up", "restore", "sharing_pod"]
