from django.contrib.auth.models import AbstractUser


class User(AbstractUser):
    """AUTH_USER_MODEL from the first migration on: add fields here at any time."""
