"""What people look at after a run: curves, a page with a sample browser, the model card."""
