"""Write files and folders whole or not at all; read YAML of others with care."""
