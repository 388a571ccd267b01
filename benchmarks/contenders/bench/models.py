from django.db import models


class Item(models.Model):
    id = models.IntegerField(primary_key=True)
    name = models.TextField()

    class Meta:
        # One table, made by the runner, is read by Django and SQLAlchemy alike.
        db_table = "item"
        managed = False

    def __str__(self) -> str:
        return self.name
