"""An Airflow DAG that submits the nightly reindex to a standing Ray cluster, and fails with it.

The connection `ray` names the cluster: its host is the address of the dashboard, http://..:8265, its password the cluster's
token. The workers of Airflow need Ray's command line alone (`ray[default]` of the cluster's version). The nodes of the cluster
run the image of the Dockerfile, and have the keys that the configuration names.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="reindex_nightly",
    schedule="17 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # one run makes up for all that were missed
    max_active_runs=1,
    tags=["embeddings"],
):
    BashOperator(
        task_id="reindex",
        bash_command=(
            "ray job submit -- "
            "embedding-pipeline reindex /app/conf/reindex-nightly.yaml --set resources.ray_address=auto --feed "
            "--json --log json"
        ),
        env={"RAY_API_SERVER_ADDRESS": "{{ conn.ray.host }}", "RAY_AUTH_TOKEN": "{{ conn.ray.password }}"},
        append_env=True,
        # A second try would find nothing to do after a run that ended with dead letters, and hide them.
        retries=0,
        execution_timeout=timedelta(hours=8),
    )
