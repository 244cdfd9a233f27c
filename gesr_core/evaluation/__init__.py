"""What evaluate.py and promote.py share: publications read for measuring, drift of scores, promotion. Driver only."""
