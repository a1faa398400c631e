"""The dialplan of a PBX: one AGI step, and hunting without umpack for when that fails.

extension.py   lines of one extension
numbers.py     number patterns in Asterisk's words
caller.py      what came off the line, made harmless before anything reads it
reception.py   a fax that ends while umpack is away
hunting.py     runs of channels, and the verdict on one attempt
text.py        the contexts, joined
"""

from umpack.dialplan.text import dialplan

__all__ = ["dialplan"]
