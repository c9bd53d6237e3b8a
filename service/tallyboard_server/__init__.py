"""Tallyboard: live counters and leaderboards as one gRPC service."""

__version__ = "0.1.0"
