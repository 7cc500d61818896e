"""Pages and pictures for people. Nothing reads them back."""
