"""What stands in a .pyz for pykcm's compiled part: the same calls by ctypes.

Each module here takes the place of another one of pykcm's: see pykcm/selftest/export.py.
"""
