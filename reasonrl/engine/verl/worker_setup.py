"""Imported by verl in every process that builds the model (`model.external_lib`), where a failure is loud."""

from reasonrl.engine.verl.plugin import register

register()
