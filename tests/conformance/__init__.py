"""The conformance cases, and what plays them."""
