"""Public data sets to try the project on: the one room that may know a data set. Driver only."""
