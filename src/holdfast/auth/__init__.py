"""Who may do what to a Pod: sealed tokens, and the store that lets a token have what it gives right to."""

from __future__ import annotations

from holdfast.auth.permissions import Permitted
from holdfast.auth.tokens import Rights, Token, rights_of, seal, unseal

__all__ = ["Permitted", "Rights", "Token", "rights_of", "seal", "unseal"]
