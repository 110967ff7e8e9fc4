"""What the scripts share. Each module is one noun; none of them is run by itself."""
