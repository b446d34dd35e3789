"""The unix socket between relay and site daemon: the gRPC service and its torch-free client."""
