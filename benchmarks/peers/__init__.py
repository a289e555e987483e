"""The same work for pilot and for its peers, in one go: `make bench-peers`.

One file per peer says how it is set up and driven, by its documented API and in its durable settings; `work.py`
gives each of them the same work; `__main__.py` runs them one after the other, each in a process and a database of
its own. Peers live in an environment of their own (`requirements.txt`), apart from pilot's.
"""
