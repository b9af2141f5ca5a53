"""asyncssh's own port forwarding, as its documentation shows it.

forward_asyncssh.py PORT BASTION BASTION_PORT USER KEY KNOWN_HOSTS TARGET TARGET_PORT
"""

import asyncio
import sys

import asyncssh


async def forward(port: str, bastion: str, bastion_port: str, user: str, key: str, known: str, *target: str) -> None:
    """Forwards until the connection ends."""
    login = asyncssh.connect(
        bastion, int(bastion_port), username=user, client_keys=[key], known_hosts=known, config=None, agent_path=None
    )
    async with login as connection:
        listener = await connection.forward_local_port("127.0.0.1", int(port), target[0], int(target[1]))
        await listener.wait_closed()


if __name__ == "__main__":
    asyncio.run(forward(*sys.argv[1:]))
