"""The third level: C text from the Program, through Jinja2 templates."""
