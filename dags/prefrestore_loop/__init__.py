"""What the DAGs share. The folder `dags` must be on the path of every Airflow service (PYTHONPATH)."""
