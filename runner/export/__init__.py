"""A plan as the arguments and files of the frameworks that train on a user's own cluster, and back."""
