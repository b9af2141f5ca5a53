"""The keys to log in with: which there are, in which order they are offered, and what became of each.

A key that is to replace another is offered before it, in the same login. So a server that does not know it yet counts
no failed login, which sshd would hold against the address.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import (
    NEXT_SUFFIX,
    REVOKED_SUFFIX,
    ForwarderKey,
    LayerFact,
    LayerStatus,
    NextKeyFact,
    PublicKeyFact,
)
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import SEEN_LIMIT, printable
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keys import Key, KeyFiles, KeyProblemError, KeySource, parse_key
from dbtunnel.forwarder.loop import in_daemon_thread

PARSE_SECONDS = 60
"""How long decrypting a key may take, on a small share of a processor too: how often to repeat is in the key."""

_NO_KEY = frozenset({Reason.SECRET_NOT_FOUND, Reason.SECRET_KEY_MISSING})

_ACCEPTED_THOUGH = {
    Reason.KEY_REJECTED: False,
    Reason.SECOND_FACTOR_REQUIRED: True,
    Reason.FORWARDING_PROHIBITED: True,
}
"""Whether the server accepted a key that is of no use; of other reasons that is not known."""

Outcome = Key | KeyProblemError

Tell = Callable[[PublicKeyFact | None, NextKeyFact | None], None]


class Keys:
    """What one Secret holds, parsed. Neither texts nor passphrases are kept."""

    def __init__(self, source: KeySource, names: ForwarderKey) -> None:
        self.names = names
        self.current: Outcome = KeyProblemError(Reason.SECRET_NOT_FOUND)
        self.next: Outcome | None = None
        self.followers: list[Callable[[], None]] = []
        """Called when there are others."""
        self._source = source
        self._stamp: object = object()  # no files have this one
        self._reading: asyncio.Future[None] | None = None
        self._revoked: frozenset[str] = frozenset()

    def look(self) -> bool:
        """Begins to read what stands in the Secret now. Returns whether it is something else than before."""
        stamp = self._source.stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        if self._reading:
            self._reading.cancel()
        self._reading = asyncio.ensure_future(self._read())
        return True

    async def ready(self) -> None:
        """Returns once all is read."""
        while self._reading and not self._reading.done():
            await asyncio.wait([self._reading])

    async def _read(self) -> None:
        files = self._source.read()
        following = files.following()
        revoked = files.revoked_words()
        parsing = [_parsed(files), *([_parsed(following)] if following else [])]
        del files, following
        current, *others = await asyncio.gather(*parsing)
        self._revoked = revoked
        self.current = self._unless_revoked(current)
        self.next = self._unless_revoked(others[0]) if others and not _same(others[0], current) else None
        for follower in self.followers:
            follower()

    def _unless_revoked(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Key) and self.is_revoked(outcome):
            listed = f"it is listed under {self.names.key}{REVOKED_SUFFIX}"
            return KeyProblemError(Reason.PRIVATE_KEY_INVALID, listed)
        return outcome

    def is_revoked(self, key: Key) -> bool:
        """Whether it must not be used any more."""
        return key.is_named_in(self._revoked)

    @property
    def is_empty(self) -> bool:
        """Whether there is no key, not even one that cannot be used."""
        return self.next is None and isinstance(self.current, KeyProblemError) and self.current.reason in _NO_KEY


class Keyring:
    """The keys for one SSH server. The one that it last accepted is among them until another has taken its place.

    Times are the loop's.
    """

    def __init__(self, keys: Keys, tell: Tell) -> None:
        self.keys, self._tell_others = keys, tell
        self._last: Key | None = None
        """The one that the server last accepted."""
        self._accepted: dict[str, bool | None] = {}
        """By fingerprint: what the server said of it at the last attempt."""
        self._rests: dict[str, tuple[LayerFact, float]] = {}
        """By fingerprint: why it is not offered, and until when."""
        keys.followers.append(self._changed)

    def _changed(self) -> None:
        self._rests.clear()
        self._tell()

    @property
    def _kept(self) -> Key | None:
        """The key that the server last accepted, where something else stands in its place now."""
        if self._last is None or self.keys.is_empty or self.keys.is_revoked(self._last):
            return None
        return None if any(_same(self._last, one) for one in (self.keys.current, self.keys.next)) else self._last

    # --- what is offered ------------------------------------------------------------------------------------------

    def offers(self, now: float) -> list[Key]:
        """The keys to offer, in this order. One that was refused rests, unless all do. Raises Failure."""
        keys, problem = list(self._usable()), self.keys.current
        if not keys and isinstance(problem, KeyProblemError):
            raise Failure(ConditionType.KEY_READY, problem.reason, problem.seen)
        return [key for key in keys if not self.is_resting(key, now)] or keys

    def best(self, now: float) -> Key | None:
        """The key that connections should use, as far as is known; None while all rest."""
        return next((key for key in self._usable() if not self.is_resting(key, now)), None)

    def replaces(self, key: Key, now: float) -> bool:
        """Whether a connection that this key made has had its day: another key is better, or there is none any more."""
        best = self.best(now)
        return not _same(key, best) if best else not any(self._usable())

    def _usable(self) -> Iterator[Key]:
        seen: set[str] = set()
        for one in (self.keys.next, self.keys.current, self._kept):
            if isinstance(one, Key) and one.fingerprint not in seen:
                seen.add(one.fingerprint)
                yield one

    def is_resting(self, key: Key, now: float) -> bool:
        """Whether the server has refused it, and it is not offered."""
        _, until = self._rests.get(key.fingerprint, (None, now))
        return now < until

    # --- what became of it ----------------------------------------------------------------------------------------

    def accepted(self, key: Key) -> None:
        """The server let it in."""
        self._last = key
        self._accepted[key.fingerprint] = True
        self._rests.pop(key.fingerprint, None)
        self._tell()

    def refused(self, key: Key, failure: Failure, until: float) -> None:
        """The server did not let it in, or let it do nothing; it is not offered again before `until`."""
        self._accepted[key.fingerprint] = _ACCEPTED_THOUGH.get(failure.reason)
        self._rests[key.fingerprint] = _false(failure.reason, failure.seen, failure.hop or 0), until
        self._tell()

    # --- what is told ---------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        name, replacement = self.keys.names.key + NEXT_SUFFIX, self.keys.next
        if replacement is None and self._kept:
            name, replacement = self.keys.names.key, self.keys.current
        following = None
        if replacement:
            public = self._public(replacement)
            following = NextKeyFact(name=name, public_key=public, fact=self._verdict(replacement))
        self._tell_others(self._public(self._kept or self.keys.current), following)

    def _public(self, outcome: Outcome) -> PublicKeyFact | None:
        if isinstance(outcome, KeyProblemError):
            return None
        return replace(outcome.public, accepted=self._accepted.get(outcome.fingerprint))

    def _verdict(self, outcome: Outcome) -> LayerFact:
        if isinstance(outcome, KeyProblemError):
            return _false(outcome.reason, outcome.seen)
        if outcome.fingerprint in self._rests:
            return self._rests[outcome.fingerprint][0]
        if self._accepted.get(outcome.fingerprint):
            return LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED)
        return LayerFact()


def _false(reason: Reason, seen: str, hop: int = 0) -> LayerFact:
    return LayerFact(status=LayerStatus.FALSE, reason=reason, seen=printable(seen, SEEN_LIMIT), hop=hop)


def _same(key: Outcome | None, other: Outcome | None) -> bool:
    return isinstance(key, Key) and isinstance(other, Key) and key.fingerprint == other.fingerprint


async def _parsed(files: KeyFiles) -> Outcome:
    """The key, parsed in a thread, since decrypting takes its time."""
    try:
        async with asyncio.timeout(PARSE_SECONDS):
            return await in_daemon_thread(lambda: parse_key(files))
    except KeyProblemError as problem:
        # a new one: the frames of the first hold the text of the key
        return KeyProblemError(problem.reason, problem.seen)
    except TimeoutError:
        seen = f"it is not decrypted after {PARSE_SECONDS} s: ssh-keygen -a made too many rounds"
        return KeyProblemError(Reason.PRIVATE_KEY_INVALID, seen)
