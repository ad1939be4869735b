"""Fixtures of the Hub on loopback; other folders of tests import the same."""

from hub_fixtures import forking, hub, hub_server, spawn, start, start_hub

__all__ = ["forking", "hub", "hub_server", "spawn", "start", "start_hub"]
