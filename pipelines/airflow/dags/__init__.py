"""What Airflow reads: one file a schedule."""
