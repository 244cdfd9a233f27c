"""Entry points for spark-submit: parse, load the configuration, open a session, compose stages."""
