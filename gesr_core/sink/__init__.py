"""Spark out: tables, ledger, staging, gate, publish, quarantine. Driver only."""
