"""Asterisk: FastAGI (one connection is one call) and AMI (signals and reconciliation)."""
