"""Runs in a Spark Python worker or in a plain loop, without a JVM: Arrow in, Arrow out."""
