"""Services: each kind of infrastructure is one folder here and one line in each of two registries."""
