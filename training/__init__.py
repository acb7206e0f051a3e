"""The few-shot fit: a few annotated cases in, an AdapterBundle out."""
