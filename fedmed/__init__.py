"""FedMed: hospitals fine-tune one medical vision-language model without moving an image.

This package is what the two sides share: data, models, privacy, training, metrics, and the wire contract.
It imports neither `hospital_client` (the site daemon and its relay) nor `aggregator` (the consortium).
Keep this file free of torch: the relay imports `fedmed.messages`, and must stay light.
"""

__version__ = "0.1.0"
