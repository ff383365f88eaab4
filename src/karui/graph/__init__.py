"""Shared torch machinery: looking at a model, capturing it, running what was captured."""
