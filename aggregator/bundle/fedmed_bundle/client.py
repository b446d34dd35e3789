"""The ClientApp is the relay that the hospital installed; the consortium's bundle only names it."""

from hospital_client.app import app as relay

app = relay
