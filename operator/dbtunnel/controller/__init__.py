"""The operator's process: watches DatabaseTunnels and keeps what they ask for."""
