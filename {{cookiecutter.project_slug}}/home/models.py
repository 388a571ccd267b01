from django.db import models


class Note(models.Model):
    """An example for home/api.py: replace both with what your service is about."""

    title = models.CharField(max_length=100, unique=True)
    text = models.TextField()
    # Counts the changes, so that nobody overwrites one that they have not seen.
    version = models.PositiveIntegerField(default=1)

    def __str__(self) -> str:
        return self.title


class Revision(models.Model):
    """The text of each version of a note."""

    note = models.ForeignKey(Note, models.CASCADE, related_name="revisions")
    version = models.PositiveIntegerField()
    text = models.TextField()

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["note", "version"], name="one_per_version"),
        )

    def __str__(self) -> str:
        return f"{self.note_id}, version {self.version}"
