"""Flags and environment variables of other servers, and what each is here."""
