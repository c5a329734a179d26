"""Vector databases are brought to a version of the table, and are proven to hold it by reading back.

Each store is one file behind the interface of store.py. What a feed does with a store, in which order, stands in
pipeline.runs.
"""
