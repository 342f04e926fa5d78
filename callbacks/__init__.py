"""Callbacks for any LightningModule: named in YAML by their full path, `class_path: callbacks.<Name>`."""
