"""DAGs for Airflow 3. The project's root must be on the PYTHONPATH of every Airflow component (docs/airflow.md)."""
