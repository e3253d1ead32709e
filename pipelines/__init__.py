"""The graph as pipelines of Kubeflow: wired here, checked against the stage table, compiled to ``compiled/*.yaml``."""
