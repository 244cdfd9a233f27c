"""The report of a published `ds`: one HTML page that stands alone. A job brings the facts. Driver only."""
