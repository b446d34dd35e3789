"""The ServerApp is the round loop installed at the aggregator."""

from aggregator.app import app as server

app = server
