"""Lakehouse tables as sources: a log, and not the names of files, says which files hold the rows, and which of these
rows count.

delta.py and iceberg.py read the logs, find.py makes source files of what they say, and refusal.py keeps such a table
from being read as plain files. What a worker needs of it is in the source files themselves: columns.py and deleted.py
apply it.
"""
