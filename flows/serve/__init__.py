"""A campaign on its schedule: `labelcycle serve`."""
