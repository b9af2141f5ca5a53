"""The keys to log in with: which there are, in which order they are offered, and what became of each.

A key that is to replace another is offered before it, in the same login. So a server that does not know it yet counts
no failed login, which sshd would hold against the address. Likewise a key with its certificate comes before the same
key without: a server may know either.
"""

import asyncio
import logging
import time
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
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.loop import in_daemon_thread

_LOG = logging.getLogger(__name__)

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

    Times are the loop's, but for those of certificates, which are told by `unix_time`.
    """

    def __init__(self, keys: Keys, tell: Tell, unix_time: Callable[[], float] = time.time) -> None:
        self.keys, self._tell_others, self._unix_time = keys, tell, unix_time
        self._last: Key | None = None
        """The one that the server last accepted."""
        self._accepted: dict[str, bool | None] = {}
        """By identity: what the server said of it at the last attempt."""
        self._rests: dict[str, tuple[LayerFact, float]] = {}
        """By identity: why it is not offered, and until when."""
        keys.followers.append(self._changed)

    def _changed(self) -> None:
        self._rests.clear()
        self._tell()

    @property
    def _kept(self) -> Key | None:
        """The key that the server last accepted, where something else stands in its place now."""
        last = self._last
        if last is None or self.keys.is_empty or self.keys.is_revoked(last):
            return None
        is_expired = last.certificate is not None and not last.certificate.is_valid(self._unix_time())
        return None if is_expired or any(_same(last, offer) for offer in self._in_secret()) else last

    def _in_secret(self) -> Iterator[Key]:
        for one in (self.keys.next, self.keys.current):
            if isinstance(one, Key):
                yield from one.offers(self._unix_time())

    # --- what is offered ------------------------------------------------------------------------------------------

    def offers(self, now: float) -> list[Key]:
        """The keys to offer, in this order. One that was refused rests, unless all do. Raises Failure."""
        keys, problem = list(self._usable()), self.keys.current
        if not keys and isinstance(problem, KeyProblemError):
            raise Failure(ConditionType.KEY_READY, problem.reason, problem.seen)
        self._warn()
        return [key for key in keys if not self.is_resting(key, now)] or keys

    def _warn(self) -> None:
        for one in (self.keys.next, self.keys.current):
            if isinstance(one, Key) and one.certificate and not one.certificate.is_valid(self._unix_time()):
                event(_LOG, "certificate not valid now", key=one.fingerprint, certificate=str(one.certificate))

    def best(self, now: float) -> Key | None:
        """The key that connections should use, as far as is known; None while all rest."""
        return next((key for key in self._usable() if not self.is_resting(key, now)), None)

    def replaces(self, key: Key, now: float) -> bool:
        """Whether a connection that this key made has had its day: another key is better, or there is none any more.

        That its certificate has expired, or is not in the Secret any more, makes no other connection better.
        """
        best = self.best(now)
        return not (_same(key, best) or _same(key.plain, best)) if best else not any(self._usable())

    def _usable(self) -> Iterator[Key]:
        kept = self._kept
        offers = [*self._in_secret(), *([kept] if kept else [])]
        yield from {offer.identity: offer for offer in offers}.values()

    def is_resting(self, key: Key, now: float) -> bool:
        """Whether the server has refused it, and it is not offered."""
        _, until = self._rests.get(key.identity, (None, now))
        return now < until

    # --- what became of it ----------------------------------------------------------------------------------------

    def accepted(self, key: Key) -> None:
        """The server let it in."""
        self._last = key
        self._accepted[key.identity] = True
        self._rests.pop(key.identity, None)
        self._tell()

    def refused(self, key: Key, failure: Failure, until: float) -> None:
        """The server did not let it in, or let it do nothing; it is not offered again before `until`."""
        self._accepted[key.identity] = _ACCEPTED_THOUGH.get(failure.reason)
        self._rests[key.identity] = _false(failure.reason, failure.seen, failure.hop or 0), until
        self._tell()

    def refusal(self, user: str, key: Key | None = None) -> str:
        """What is to be said of a key's certificate where the server does not accept the key, by default of the one in
        use: empty where it has none.
        """
        known = [one for one in (key or self._kept, self.keys.current, self.keys.next) if isinstance(one, Key)]
        certificates = (one.certificate for one in known if one.certificate and one.fingerprint == known[0].fingerprint)
        certificate = next(certificates, None)
        return certificate.refusal(user, self._unix_time()) if certificate else ""

    # --- what is told ---------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        name, replacement, kept = self.keys.names.key + NEXT_SUFFIX, self.keys.next, self._kept
        if replacement is None and kept and not _same(kept.plain, self.keys.current):
            name, replacement = self.keys.names.key, self.keys.current
        following = None
        if replacement:
            public = self._public(replacement)
            following = NextKeyFact(name=name, public_key=public, fact=self._verdict(replacement))
        self._tell_others(self._public(kept or self.keys.current), following)

    def _public(self, outcome: Outcome) -> PublicKeyFact | None:
        if isinstance(outcome, KeyProblemError):
            return None
        same = (offer for offer in self._usable() if offer.fingerprint == outcome.fingerprint)
        verdicts = {self._accepted.get(offer.identity) for offer in same}
        accepted = True if True in verdicts else False if False in verdicts else None
        return replace(outcome.public, accepted=accepted)

    def _verdict(self, outcome: Outcome) -> LayerFact:
        if isinstance(outcome, KeyProblemError):
            return _false(outcome.reason, outcome.seen)
        names = [offer.identity for offer in outcome.offers(self._unix_time())]
        if any(self._accepted.get(name) and name not in self._rests for name in names):
            return LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED)
        return next((self._rests[name][0] for name in names if name in self._rests), LayerFact())


def _false(reason: Reason, seen: str, hop: int = 0) -> LayerFact:
    return LayerFact(status=LayerStatus.FALSE, reason=reason, seen=printable(seen, SEEN_LIMIT), hop=hop)


def _same(key: Outcome | None, other: Outcome | None) -> bool:
    return isinstance(key, Key) and isinstance(other, Key) and key.identity == other.identity


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
