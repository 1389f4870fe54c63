"""Interfaces of libraries that are not public: one module for each library.

Each module names the version that it was read in. The other rooms import these interfaces from here
alone, so an upgrade of a library is checked in one place. A start checks them too (`versions`).
"""
