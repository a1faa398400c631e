"""A real Asterisk and real SIP peers (SIPp) for the tests; nothing here imports umpack."""
