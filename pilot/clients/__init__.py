"""Protocols of programs and services that pilot talks to; no words of pilot's own."""
