"""The relay under test."""

from hospital_client.app import app as relay

app = relay
