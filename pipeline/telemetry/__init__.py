"""Monitoring and catalogues hear how a run goes: Prometheus by metrics, OpenLineage by events."""
