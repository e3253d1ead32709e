"""Stages as components of Kubeflow Pipelines.

:mod:`components.factory` makes them where kfp is installed; every other module runs inside the container and
knows no kfp.
"""
