"""The RPC layer: protobuf and status codes in, plain calls of the domain out."""
