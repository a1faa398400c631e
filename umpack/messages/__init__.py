"""Fax and voice messages on their way to mailboxes.

message.py       what is known of a message, and of each delivery of it
states.py        the tables of what can become of them
fault_points.py  where a test may kill the process
store.py         what a spool is to the rest of umpack
spool.py         the spool as the daemon holds it, asked from the event loop
disk_spool.py    the same on this node's disk, blocking; the order in which all is made durable
disk_deliveries.py   its part that senders and people use
asked.py         which server may have a mail, when umpack was killed
originals.py     the files: reserved, brought to their place, deleted
records.py, deliveries.py   the rows, one function a step
told.py          which calls are told of in the mail of another
spool_writer.py  the one thread that writes the rows, many commits to a sync
spool_archive.py questions
spool_schema.py  the database: tables, migrations, damage
adoption.py      what dead processes left is taken in
stillness.py     how long nothing has changed, whatever the wall clock does
fax_tags.py      what a fax file says of its own reception
last_words.py    what the PBX wrote down of a fax whose umpack had died
spool_health.py  room, faults, counts
"""
