"""The composition root: settings → concrete objects → one loop. Only here are concrete classes named together.

`context` puts the objects together, `serve` and `direct` are the two ways to run them.
"""
