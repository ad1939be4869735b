"""Parses arguments, calls the library, prints and exits; no other room does any of these."""
