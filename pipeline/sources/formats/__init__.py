"""Source formats: each file here turns the bytes of one format into `Block`s of rows. registry.py names them all."""
