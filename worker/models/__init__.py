"""The demo model, the text it was trained on, and the script that makes it. Never here: how models are run."""
