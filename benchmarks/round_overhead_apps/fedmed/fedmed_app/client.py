"""Named as every Flower app must name one; `fedmed-site connect` never fetches it."""

from hospital_client.app import app as relay

app = relay
